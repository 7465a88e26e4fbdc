//! The machine that a figure belongs to.

use std::fs;
use std::path::Path;

use serde::{Deserialize, Serialize};

/// What may change a figure. What the kernel does not tell is left out.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct Host {
    pub(crate) cpu: String,
    pub(crate) cpus: usize,
    pub(crate) mhz: Option<f64>,
    pub(crate) governor: Option<String>,
    pub(crate) smt: Option<String>,
    /// Under a hypervisor, which moves cores and takes time from them.
    pub(crate) virtual_machine: bool,
    pub(crate) kernel: String,
    /// CPUs that the kernel keeps others off (isolcpus), and those without a tick (nohz_full).
    pub(crate) isolated: Option<String>,
    pub(crate) nohz_full: Option<String>,
    /// Huge pages: size in KiB, all, free.
    pub(crate) huge_pages: Vec<(u64, u64, u64)>,
    pub(crate) transparent: Option<String>,
    /// Vulnerabilities that are mitigated, which costs time.
    pub(crate) mitigated: Vec<String>,
}

impl Host {
    /// The facts of the machine whose file systems begin at `root`: `/`.
    pub(crate) fn facts(root: &Path) -> Host {
        let text = |path: &str| fs::read_to_string(root.join(path)).ok().map(|s| s.trim().to_owned());
        let some = |path: &str| text(path).filter(|s| !s.is_empty() && s != "(null)");
        let info = text("proc/cpuinfo").unwrap_or_default();
        let field = |name: &str| {
            info.lines()
                .find(|line| line.starts_with(name))?
                .split_once(':')
                .map(|(_, v)| v.trim().to_owned())
        };
        let cpu = "sys/devices/system/cpu";
        Host {
            cpu: field("model name").unwrap_or_default(),
            cpus: info.lines().filter(|line| line.starts_with("processor")).count(),
            mhz: field("cpu MHz").and_then(|mhz| mhz.parse().ok()),
            governor: some(&format!("{cpu}/cpu0/cpufreq/scaling_governor")),
            smt: some(&format!("{cpu}/smt/control")),
            virtual_machine: field("flags").is_some_and(|f| f.split(' ').any(|flag| flag == "hypervisor")),
            kernel: text("proc/sys/kernel/osrelease").unwrap_or_default(),
            isolated: some(&format!("{cpu}/isolated")),
            nohz_full: some(&format!("{cpu}/nohz_full")),
            huge_pages: huge_pages(&root.join("sys/kernel/mm/hugepages")),
            transparent: some("sys/kernel/mm/transparent_hugepage/enabled").and_then(|s| chosen(&s)),
            mitigated: mitigated(&root.join(cpu).join("vulnerabilities")),
        }
    }

    /// One line for people.
    pub(crate) fn line(&self) -> String {
        let or = |what: &Option<String>, none: &str| what.clone().unwrap_or_else(|| none.into());
        let pages: Vec<String> = self
            .huge_pages
            .iter()
            .filter(|(_, all, _)| *all > 0)
            .map(|(kib, all, free)| format!("{free} of {all} pages of {} MiB free", kib / 1024))
            .collect();
        format!(
            "{}, {} CPUs{}, governor {}, isolated {}, {}, Linux {}",
            self.cpu,
            self.cpus,
            if self.virtual_machine { " (virtual)" } else { "" },
            or(&self.governor, "unknown"),
            or(&self.isolated, "none"),
            if pages.is_empty() { "no huge pages".into() } else { pages.join(", ") },
            self.kernel
        )
    }
}

fn huge_pages(folder: &Path) -> Vec<(u64, u64, u64)> {
    let mut sizes: Vec<_> = fs::read_dir(folder)
        .into_iter()
        .flatten()
        .flatten()
        .filter_map(|entry| {
            let kib =
                entry.file_name().to_str()?.strip_prefix("hugepages-")?.strip_suffix("kB")?.parse().ok()?;
            let number = |name: &str| fs::read_to_string(entry.path().join(name)).ok()?.trim().parse().ok();
            Some((kib, number("nr_hugepages")?, number("free_hugepages")?))
        })
        .collect();
    sizes.sort_unstable();
    sizes
}

fn mitigated(folder: &Path) -> Vec<String> {
    let mut names: Vec<String> = fs::read_dir(folder)
        .into_iter()
        .flatten()
        .flatten()
        .filter(|entry| fs::read_to_string(entry.path()).is_ok_and(|s| s.starts_with("Mitigation")))
        .filter_map(|entry| entry.file_name().into_string().ok())
        .collect();
    names.sort_unstable();
    names
}

/// The choice in brackets, as the kernel writes choices: `always [madvise] never`.
fn chosen(choices: &str) -> Option<String> {
    let (_, rest) = choices.split_once('[')?;
    rest.split_once(']').map(|(choice, _)| choice.to_owned())
}

/// Runs this thread on `core` only.
pub(crate) fn pin(core: usize) -> Result<(), String> {
    if core_affinity::set_for_current(core_affinity::CoreId { id: core }) {
        Ok(())
    } else {
        Err(format!("cannot run on core {core}; see taskset -p $$"))
    }
}

/// CPU time that the hypervisor has taken from all cores.
pub(crate) struct Steal(u64);

impl Steal {
    pub(crate) fn now() -> Steal {
        Steal(fs::read_to_string("/proc/stat").ok().and_then(|stat| ticks(&stat)).unwrap_or(0))
    }

    /// Milliseconds since.
    pub(crate) fn since_ms(&self) -> f64 {
        // The kernel counts in ticks of 10 ms for user space, on every architecture.
        Steal::now().0.saturating_sub(self.0) as f64 * 10.0
    }
}

/// Steal, the eighth number of the first line of `/proc/stat`.
fn ticks(stat: &str) -> Option<u64> {
    stat.lines().next()?.split_whitespace().nth(8)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn facts_are_read_from_where_the_kernel_writes_them() {
        let root = std::env::temp_dir().join(format!("linerate-host-{}", std::process::id()));
        for (path, text) in [
            (
                "proc/cpuinfo",
                "processor\t: 0\nmodel name\t: A CPU\ncpu MHz\t\t: 2700.5\nflags\t\t: sse hypervisor\n\nprocessor\t: 1\n",
            ),
            ("proc/sys/kernel/osrelease", "6.18.0\n"),
            ("sys/devices/system/cpu/cpu0/cpufreq/scaling_governor", "performance\n"),
            ("sys/devices/system/cpu/isolated", "1-3\n"),
            ("sys/devices/system/cpu/nohz_full", "(null)\n"),
            ("sys/devices/system/cpu/vulnerabilities/spectre_v2", "Mitigation: Retpolines\n"),
            ("sys/devices/system/cpu/vulnerabilities/meltdown", "Not affected\n"),
            ("sys/kernel/mm/transparent_hugepage/enabled", "always [madvise] never\n"),
            ("sys/kernel/mm/hugepages/hugepages-2048kB/nr_hugepages", "1024\n"),
            ("sys/kernel/mm/hugepages/hugepages-2048kB/free_hugepages", "1000\n"),
        ] {
            fs::create_dir_all(root.join(path).parent().unwrap()).unwrap();
            fs::write(root.join(path), text).unwrap();
        }
        let host = Host::facts(&root);
        fs::remove_dir_all(&root).unwrap();
        let want = Host {
            cpu: "A CPU".into(),
            cpus: 2,
            mhz: Some(2700.5),
            governor: Some("performance".into()),
            smt: None,
            virtual_machine: true,
            kernel: "6.18.0".into(),
            isolated: Some("1-3".into()),
            nohz_full: None,
            huge_pages: vec![(2048, 1024, 1000)],
            transparent: Some("madvise".into()),
            mitigated: vec!["spectre_v2".into()],
        };
        assert_eq!(host, want);
        assert_eq!(
            host.line(),
            "A CPU, 2 CPUs (virtual), governor performance, isolated 1-3, 1000 of 1024 pages of 2 MiB free, Linux 6.18.0"
        );
        assert_eq!(Host::facts(Path::new("/nowhere")).line().matches("unknown").count(), 1);
        assert!(!Host::facts(Path::new("/")).kernel.is_empty());
    }

    #[test]
    fn steal_is_the_eighth_number() {
        assert_eq!(ticks("cpu  1 2 3 4 5 6 7 88 9 10\ncpu0 1\n"), Some(88));
        assert_eq!(ticks("cpu 1"), None);
    }
}
