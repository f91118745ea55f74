//! The `hookswitch` program: arguments in, exit code out.

fn main() -> std::process::ExitCode {
    hookswitch::cli::main(&hookswitch::app::Builder::default())
}
