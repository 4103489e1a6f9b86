//! `make docs`: man pages and shell completions, laid out as below an installation prefix.

mod pages;

use std::{env, path::PathBuf, process::ExitCode};

fn main() -> ExitCode {
    let Some(folder) = env::args_os().nth(1).map(PathBuf::from) else {
        eprintln!("reference: which folder? `make docs` names target/docs");
        return ExitCode::FAILURE;
    };
    match pages::write(&folder) {
        Ok(written) => {
            for path in written {
                println!("{}", path.display());
            }
            ExitCode::SUCCESS
        }
        Err(error) => {
            eprintln!("reference: {}: {error}", folder.display());
            ExitCode::FAILURE
        }
    }
}
