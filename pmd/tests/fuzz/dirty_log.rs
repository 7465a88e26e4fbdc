//! A dirty log of any place and size: refused, or marked within its bounds.

use hugepages::{DirtyLog, Marks};
use rustix::fs::{MemfdFlags, ftruncate, memfd_create};

const FILE: usize = 8192;

pub(crate) fn run(data: &[u8]) {
    let Some((head, marks)) = data.split_first_chunk::<16>() else { return };
    let number = |at: usize| u64::from_le_bytes(head[at..at + 8].try_into().unwrap());
    let (offset, len) = (number(0), number(8));
    let file = memfd_create(c"fuzz", MemfdFlags::CLOEXEC).unwrap();
    ftruncate(&file, FILE as u64).unwrap();
    let Ok(log) = DirtyLog::open(file.try_clone().unwrap(), offset, len) else { return };
    assert!(offset + len <= FILE as u64, "more than there is");
    let mut all = Marks::new(std::sync::Arc::new(log));
    for mark in marks.chunks_exact(12) {
        let gpa = u64::from_le_bytes(mark[..8].try_into().unwrap());
        all.mark(gpa, u32::from_le_bytes(mark[8..].try_into().unwrap()).into());
        all.flush();
    }
    let mut bytes = vec![0; FILE];
    assert_eq!(rustix::io::pread(&file, &mut bytes, 0).unwrap(), FILE);
    let outside = (0..FILE as u64).filter(|at| !(offset..offset + len).contains(at));
    assert!(outside.into_iter().all(|at| bytes[at as usize] == 0), "a bit outside the log");
}
