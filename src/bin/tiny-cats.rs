//! The command line.

fn main() -> std::process::ExitCode {
    tiny_cats::cli::main()
}
