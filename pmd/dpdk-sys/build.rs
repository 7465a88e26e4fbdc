//! Compiles the shim against the libdpdk that `pkg-config` finds, and links it.

fn main() {
    println!("cargo::rerun-if-changed=src/shim.c");
    println!("cargo::rerun-if-changed=src/shim.h");
    println!("cargo::rerun-if-env-changed=PKG_CONFIG_PATH");
    #[cfg(feature = "linked")]
    if let Err(why) = linked() {
        println!("cargo::error={why}");
    }
}

#[cfg(feature = "linked")]
fn linked() -> Result<(), String> {
    let ask = |what: &str| {
        let out = std::process::Command::new("pkg-config").args([what, "libdpdk"]).output();
        let out = out.map_err(|e| format!("pkg-config: {e}; the feature `dpdk` needs it to find libdpdk"))?;
        if !out.status.success() {
            return Err(
                "libdpdk is not installed (Debian: libdpdk-dev), or PKG_CONFIG_PATH does not lead to its \
                        libdpdk.pc; the feature `dpdk` needs it"
                    .to_owned(),
            );
        }
        Ok(String::from_utf8_lossy(&out.stdout).trim().to_owned())
    };
    let version = ask("--modversion")?;
    let number = |i: usize| version.split('.').nth(i).and_then(|n| n.parse::<u32>().ok()).unwrap_or(0);
    if (number(0), number(1)) < (22, 11) {
        return Err(format!("libdpdk {version} is too old; the feature `dpdk` needs 22.11 or later"));
    }
    let mut build = cc::Build::new();
    build.file("src/shim.c").define("ALLOW_EXPERIMENTAL_API", None).warnings(false);
    for flag in ask("--cflags")?.split_whitespace() {
        build.flag(flag);
    }
    build
        .try_compile("hotring_dpdk")
        .map_err(|e| format!("the shim does not compile with libdpdk {version}: {e}"))?;
    for flag in ask("--libs")?.split_whitespace() {
        if let Some(name) = flag.strip_prefix("-l") {
            println!("cargo::rustc-link-lib=dylib={name}");
        } else if let Some(folder) = flag.strip_prefix("-L") {
            println!("cargo::rustc-link-search=native={folder}");
        }
    }
    Ok(())
}
