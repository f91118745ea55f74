//! The `hookswitch` program: arguments in, exit code out.

fn main() -> std::process::ExitCode {
    hookswitch::main(&hookswitch::App::builder())
}
