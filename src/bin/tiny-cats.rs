//! The program `tiny-cats`.

fn main() -> std::process::ExitCode {
    tiny_cats::cli::main()
}
