//! Numbers in the documentation match what the program computes.

use tiny_cats_models::{Network as _, Sizes, TinyDitConfig, tiny_dit::SIZES};

/// Compares the README's table of model sizes with the cost backend.
#[test]
fn the_readme_table_of_sizes_matches_the_cost_backend() {
    let readme = include_str!("../../README.md");
    for (name, width, depth, heads) in SIZES {
        let cell = |size| {
            let cost = TinyDitConfig::named(name, size, 13).unwrap().cost(&Sizes::new()).unwrap();
            format!("{:.1} M, {:.2} GFLOP", cost.parameters() as f64 / 1e6, cost.flops() as f64 / 1e9)
        };
        let cells = [32, 64, 128].map(cell).join(" | ");
        let row = format!("| {name} | {width} | {depth} | {heads} | {cells} |");
        assert!(readme.contains(&row), "README.md lacks the row\n{row}");
    }
}
