/// Runs a target over what fuzzers kept for it, and over what is left of each input when it ends early.
#[track_caller]
fn replay(name: &str, run: fn(&[u8])) {
    let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/../fuzz/corpus/").to_owned() + name;
    let mut inputs = 0;
    for file in std::fs::read_dir(&folder).unwrap_or_else(|e| panic!("{folder}: {e}")) {
        let bytes = std::fs::read(file.unwrap().path()).unwrap();
        run(&bytes);
        run(&bytes[..bytes.len() / 2]);
        inputs += 1;
    }
    assert!(inputs > 0, "{folder} is empty");
}
