//! Huge pages of the host: what there is, by size and NUMA node, and how to get more.

use std::fmt;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

/// Size of the pages behind a mapping.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum PageSize {
    /// Ordinary pages of 4 KiB.
    Base,
    /// Huge pages of 2 MiB.
    Huge2M,
    /// Huge pages of 1 GiB.
    Huge1G,
}

impl PageSize {
    /// Bytes in a page.
    pub const fn bytes(self) -> usize {
        match self {
            PageSize::Base => 4 << 10,
            PageSize::Huge2M => 2 << 20,
            PageSize::Huge1G => 1 << 30,
        }
    }
}

impl fmt::Display for PageSize {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            PageSize::Base => "4 KiB",
            PageSize::Huge2M => "2 MiB",
            PageSize::Huge1G => "1 GiB",
        })
    }
}

/// Sizes that are looked for.
const SIZES: [PageSize; 2] = [PageSize::Huge2M, PageSize::Huge1G];

/// Huge pages of one size on one node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pages {
    /// Their size.
    pub size: PageSize,
    /// Their node; `None` on a host without NUMA.
    pub node: Option<u32>,
    /// How many there are.
    pub total: u64,
    /// How many of them nobody uses. Some of these may be promised to mappings already.
    pub free: u64,
    /// How many of them are beyond what was reserved, and go away when they are freed.
    pub surplus: u64,
}

impl fmt::Display for Pages {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(node) = self.node {
            write!(f, "node {node}: ")?;
        }
        write!(f, "{} pages of {}, {} free", self.total, self.size, self.free)?;
        if self.surplus > 0 {
            write!(f, ", {} surplus", self.surplus)?;
        }
        Ok(())
    }
}

/// What a request for more pages came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Reserved {
    /// Size of the pages.
    pub size: PageSize,
    /// Pages asked for.
    pub asked: u64,
    /// Pages there are now in addition: fewer when the host has no memory in large enough pieces.
    pub got: u64,
}

impl fmt::Display for Reserved {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "reserved {} of {} pages of {}", self.got, self.asked, self.size)?;
        if self.got < self.asked {
            let size = if self.size == PageSize::Huge1G { "1G" } else { "2M" };
            write!(
                f,
                ": memory is in use or in too small pieces; reserve them when the host boots, with \
                 hugepagesz={size} hugepages={} on the kernel's command line",
                self.asked
            )?;
        }
        Ok(())
    }
}

/// Why no pages could be reserved.
#[derive(Debug, thiserror::Error)]
pub enum ReserveError {
    /// The processor or the kernel has no pages of that size, or the host no such node.
    #[error("this host has no huge pages of {size}{}", on(*.node))]
    NotThere {
        /// Size asked for.
        size: PageSize,
        /// Node asked for.
        node: Option<u32>,
    },
    /// Not allowed, or refused.
    #[error("reserving huge pages of {size}: {source}; as root: {command}")]
    Refused {
        /// Size asked for.
        size: PageSize,
        /// Why.
        source: io::Error,
        /// What to run instead.
        command: String,
    },
}

fn on(node: Option<u32>) -> String {
    node.map(|node| format!(" on node {node}")).unwrap_or_default()
}

/// The huge pages of this host, by size and node. Empty when the kernel knows none.
pub fn report() -> Vec<Pages> {
    Host::this().report()
}

/// Reserves `pages` more huge pages (as root), and says how many there came to be.
///
/// # Errors
/// [`ReserveError::NotThere`] without such pages or such a node, [`ReserveError::Refused`] when the
/// kernel does not let us.
pub fn reserve(size: PageSize, node: Option<u32>, pages: u64) -> Result<Reserved, ReserveError> {
    Host::this().reserve(size, node, pages)
}

/// The command line that makes `pages` free huge pages where too few are free now.
pub fn command(size: PageSize, node: Option<u32>, pages: u64) -> String {
    Host::this().command(size, node, pages)
}

/// A host, by where its sysfs is.
struct Host {
    sys: PathBuf,
}

impl Host {
    fn this() -> Host {
        Host { sys: PathBuf::from("/sys") }
    }

    /// Directory of the pages of one size: of a node, or of all.
    fn dir(&self, size: PageSize, node: Option<u32>) -> PathBuf {
        let base = match node {
            Some(node) => self.sys.join(format!("devices/system/node/node{node}/hugepages")),
            None => self.sys.join("kernel/mm/hugepages"),
        };
        base.join(format!("hugepages-{}kB", size.bytes() / 1024))
    }

    fn nodes(&self) -> Vec<Option<u32>> {
        let entries = fs::read_dir(self.sys.join("devices/system/node"));
        let number =
            |entry: fs::DirEntry| entry.file_name().to_str()?.strip_prefix("node")?.parse::<u32>().ok();
        let mut nodes: Vec<_> =
            entries.into_iter().flatten().flatten().filter_map(number).map(Some).collect();
        nodes.sort_unstable();
        if nodes.is_empty() { vec![None] } else { nodes }
    }

    fn pages(&self, size: PageSize, node: Option<u32>) -> Option<Pages> {
        let dir = self.dir(size, node);
        Some(Pages {
            size,
            node,
            total: number(&dir.join("nr_hugepages"))?,
            free: number(&dir.join("free_hugepages"))?,
            surplus: number(&dir.join("surplus_hugepages"))?,
        })
    }

    fn report(&self) -> Vec<Pages> {
        let nodes = self.nodes();
        nodes.iter().flat_map(|&node| SIZES.iter().filter_map(move |&size| self.pages(size, node))).collect()
    }

    fn reserve(&self, size: PageSize, node: Option<u32>, pages: u64) -> Result<Reserved, ReserveError> {
        let before = self.pages(size, node).ok_or(ReserveError::NotThere { size, node })?;
        // Surplus pages count as reserved once the number is raised.
        let wanted = before.total - before.surplus + pages;
        fs::write(self.dir(size, node).join("nr_hugepages"), wanted.to_string()).map_err(|source| {
            ReserveError::Refused { size, source, command: self.command(size, node, before.free + pages) }
        })?;
        let after = self.pages(size, node).ok_or(ReserveError::NotThere { size, node })?;
        let got = (after.total - after.surplus).saturating_sub(before.total - before.surplus);
        Ok(Reserved { size, asked: pages, got })
    }

    fn command(&self, size: PageSize, node: Option<u32>, pages: u64) -> String {
        let path = self.dir(size, node).join("nr_hugepages");
        let wanted = match self.pages(size, node) {
            Some(now) => now.total - now.surplus + pages.saturating_sub(now.free),
            None => pages,
        };
        format!("sudo sh -c 'echo {wanted} > {}'", path.display())
    }
}

fn number(path: &Path) -> Option<u64> {
    fs::read_to_string(path).ok()?.trim().parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A tree laid out like sysfs, in which writing a number makes so many pages at once.
    struct Tree(Host);

    impl Tree {
        fn new(name: &str, nodes: &[u32]) -> Tree {
            let sys = std::env::temp_dir().join(format!("hotring-{}-{name}", std::process::id()));
            let tree = Tree(Host { sys });
            for size in SIZES {
                tree.set(size, None, [30, 12, 2]);
                for &node in nodes {
                    tree.set(size, Some(node), [10 * u64::from(node) + 10, 6, 1]);
                }
            }
            tree
        }

        fn set(&self, size: PageSize, node: Option<u32>, numbers: [u64; 3]) {
            let dir = self.0.dir(size, node);
            fs::create_dir_all(&dir).unwrap();
            for (name, n) in ["nr_hugepages", "free_hugepages", "surplus_hugepages"].iter().zip(numbers) {
                fs::write(dir.join(name), format!("{n}\n")).unwrap();
            }
        }
    }

    impl Drop for Tree {
        fn drop(&mut self) {
            let _ = fs::remove_dir_all(&self.0.sys);
        }
    }

    #[test]
    #[cfg_attr(miri, ignore = "files")]
    fn tells_what_there_is_by_node_or_in_all() {
        let tree = Tree::new("numa", &[1, 0]);
        let report = tree.0.report();
        assert_eq!(report.len(), 4);
        assert_eq!(report[0].to_string(), "node 0: 10 pages of 2 MiB, 6 free, 1 surplus");
        assert_eq!(report[3].to_string(), "node 1: 20 pages of 1 GiB, 6 free, 1 surplus");
        let flat = Tree::new("flat", &[]).0.report();
        assert_eq!((flat.len(), flat[1].node), (2, None));
        assert_eq!(flat[1].to_string(), "30 pages of 1 GiB, 12 free, 2 surplus");
    }

    #[test]
    #[cfg_attr(miri, ignore = "files")]
    fn the_command_makes_up_for_what_is_missing() {
        let host = &Tree::new("command", &[0]).0;
        let path = host.sys.display();
        assert_eq!(
            host.command(PageSize::Huge2M, Some(0), 16),
            format!(
                "sudo sh -c 'echo 19 > {path}/devices/system/node/node0/hugepages/hugepages-2048kB/nr_hugepages'"
            )
        );
        let none = Host { sys: "/nowhere".into() }.command(PageSize::Huge1G, None, 2);
        assert_eq!(
            none,
            "sudo sh -c 'echo 2 > /nowhere/kernel/mm/hugepages/hugepages-1048576kB/nr_hugepages'"
        );
    }

    #[test]
    #[cfg_attr(miri, ignore = "files")]
    fn reserves_and_says_what_it_got() {
        let tree = Tree::new("reserve", &[0]);
        let got = tree.0.reserve(PageSize::Huge1G, None, 4).unwrap();
        // Written as 30 - 2 + 4; the two surplus pages of the tree stay surplus.
        assert_eq!((got.asked, got.got), (4, 2));
        let text = got.to_string();
        assert!(text.starts_with("reserved 2 of 4 pages of 1 GiB: "), "{text}");
        assert!(text.ends_with("hugepagesz=1G hugepages=4 on the kernel's command line"), "{text}");
        let why = tree.0.reserve(PageSize::Huge2M, Some(7), 1).unwrap_err();
        assert_eq!(why.to_string(), "this host has no huge pages of 2 MiB on node 7");
    }

    #[test]
    #[cfg_attr(miri, ignore = "files")]
    fn this_host_answers() {
        for pages in report() {
            assert!(pages.free <= pages.total, "{pages}");
        }
    }
}
