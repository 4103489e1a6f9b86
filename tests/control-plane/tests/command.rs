//! Where the programs come from, as the command `control-plane build` tells it.

use std::fs;
use std::process::{Command, Output};

use control_plane::Component;

fn build(folder: &std::path::Path, assets: Option<&std::path::Path>) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_control-plane"));
    command.arg("build").env("PATH", folder).env("CARGO_TARGET_DIR", folder).env_remove("KUBEBUILDER_ASSETS");
    if let Some(assets) = assets {
        command.env("KUBEBUILDER_ASSETS", assets);
    }
    command.output().expect("an end")
}

#[test]
fn assets_or_go_or_one_sentence() {
    let folder = std::env::temp_dir().join(format!("control-plane-command-{}", std::process::id()));
    fs::create_dir_all(&folder).expect("a folder");
    let no_go = build(&folder, None);
    let no_assets = build(&folder, Some(&folder));
    for component in Component::CONTROL_PLANE {
        fs::write(folder.join(component.name()), "").expect("a file");
    }
    let all_assets = build(&folder, Some(&folder));
    fs::remove_dir_all(&folder).expect("the folder");

    for output in [no_go, no_assets] {
        let stderr = String::from_utf8(output.stderr).expect("text");
        assert!(!output.status.success() && stderr.lines().count() == 1, "{stderr}");
        assert!(stderr.contains("needs Go 1.26 or newer") && stderr.contains("KUBEBUILDER_ASSETS"), "{stderr}");
    }
    assert!(all_assets.status.success());
    assert_eq!(String::from_utf8(all_assets.stdout).expect("text"), format!("{}\n", folder.display()));
}
