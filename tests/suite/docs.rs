//! What documents say is what the program computes.

use tiny_cats_models::{TinyDitConfig, tiny_dit::SIZES};

/// The README's table of sizes, from the cost reading.
#[test]
fn the_table_of_sizes_matches_the_cost_backend() {
    let readme = include_str!("../../README.md");
    for (name, width, depth, heads) in SIZES {
        let cell = |size| {
            let ledger = TinyDitConfig::named(name, size, 13).unwrap().cost().unwrap();
            format!("{:.1} M, {:.2} GFLOP", ledger.parameters() as f64 / 1e6, ledger.flops() as f64 / 1e9)
        };
        let cells = [32, 64, 128].map(cell).join(" | ");
        let row = format!("| {name} | {width} | {depth} | {heads} | {cells} |");
        assert!(readme.contains(&row), "README.md lacks the row\n{row}");
    }
}
