//! Selects loom's atomics, except under Miri, which runs the ordinary tests.

fn main() {
    if std::env::var_os("CARGO_CFG_MIRI").is_none() {
        println!("cargo:rustc-cfg=loom");
    }
}
