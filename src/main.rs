//! The `taxiway` program: arguments in, exit code out.

use std::process::ExitCode;

fn main() -> ExitCode {
    taxiway::cli::main()
}
