//! Users, capabilities and the filter of system calls.

// UNSAFETY: the C library changes the user of all threads at once; nothing else does.
#![allow(unsafe_code)]

use std::collections::BTreeMap;
use std::io;

use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter, SeccompRule,
    TargetArch,
};

/// What forwarding takes, and ports that come and go at the prompt.
const CALLS: &[libc::c_long] = &[
    // Rings and their eventfds.
    libc::SYS_read,
    libc::SYS_write,
    libc::SYS_readv,
    libc::SYS_writev,
    libc::SYS_pread64,
    libc::SYS_pwrite64,
    libc::SYS_preadv2,
    libc::SYS_pwritev2,
    libc::SYS_ppoll,
    libc::SYS_pselect6,
    libc::SYS_epoll_create1,
    libc::SYS_epoll_ctl,
    libc::SYS_epoll_pwait,
    libc::SYS_eventfd2,
    libc::SYS_io_setup,
    libc::SYS_io_submit,
    libc::SYS_io_destroy,
    // Conversations with front-ends.
    libc::SYS_socketpair,
    libc::SYS_bind,
    libc::SYS_listen,
    libc::SYS_accept4,
    libc::SYS_connect,
    libc::SYS_shutdown,
    libc::SYS_sendto,
    libc::SYS_sendmsg,
    libc::SYS_recvfrom,
    libc::SYS_recvmsg,
    libc::SYS_getsockopt,
    libc::SYS_setsockopt,
    libc::SYS_getsockname,
    // Files: sockets, captures, interfaces, what the kernel says of itself.
    libc::SYS_openat,
    libc::SYS_close,
    libc::SYS_close_range,
    libc::SYS_dup,
    libc::SYS_dup3,
    libc::SYS_pipe2,
    libc::SYS_fcntl,
    libc::SYS_fstat,
    libc::SYS_fstatfs,
    libc::SYS_newfstatat,
    libc::SYS_mkdirat,
    libc::SYS_statx,
    libc::SYS_lseek,
    libc::SYS_ftruncate,
    libc::SYS_readlinkat,
    libc::SYS_getdents64,
    libc::SYS_getcwd,
    libc::SYS_faccessat2,
    libc::SYS_unlinkat,
    libc::SYS_fchmodat,
    libc::SYS_fchownat,
    libc::SYS_ioctl,
    // Memory.
    libc::SYS_memfd_create,
    libc::SYS_fallocate,
    libc::SYS_munmap,
    libc::SYS_mremap,
    libc::SYS_madvise,
    libc::SYS_mbind,
    libc::SYS_get_mempolicy,
    libc::SYS_brk,
    // Threads and signals.
    libc::SYS_clone,
    libc::SYS_clone3,
    libc::SYS_exit,
    libc::SYS_exit_group,
    libc::SYS_futex,
    libc::SYS_set_robust_list,
    libc::SYS_rseq,
    libc::SYS_sched_yield,
    libc::SYS_sched_getaffinity,
    libc::SYS_sched_setaffinity,
    libc::SYS_membarrier,
    libc::SYS_sigaltstack,
    libc::SYS_rt_sigaction,
    libc::SYS_rt_sigprocmask,
    libc::SYS_rt_sigreturn,
    libc::SYS_restart_syscall,
    libc::SYS_tgkill,
    libc::SYS_getpid,
    libc::SYS_gettid,
    libc::SYS_getuid,
    libc::SYS_geteuid,
    libc::SYS_getgid,
    libc::SYS_getegid,
    libc::SYS_getrusage,
    libc::SYS_prlimit64,
    libc::SYS_sysinfo,
    libc::SYS_uname,
    libc::SYS_getrandom,
    // Time.
    libc::SYS_clock_gettime,
    libc::SYS_clock_getres,
    libc::SYS_clock_nanosleep,
    libc::SYS_nanosleep,
    libc::SYS_gettimeofday,
];

/// The older forms of some, which newer processors do without.
#[cfg(target_arch = "x86_64")]
const OLD_CALLS: &[libc::c_long] = &[
    libc::SYS_poll,
    libc::SYS_select,
    libc::SYS_epoll_wait,
    libc::SYS_stat,
    libc::SYS_lstat,
    libc::SYS_readlink,
    libc::SYS_access,
    libc::SYS_mkdir,
    libc::SYS_rmdir,
    libc::SYS_unlink,
    libc::SYS_chmod,
    libc::SYS_chown,
    libc::SYS_time,
];
#[cfg(not(target_arch = "x86_64"))]
const OLD_CALLS: &[libc::c_long] = &[];

/// `PR_SET_VMA`: names of anonymous memory.
const PR_SET_VMA: u64 = 0x5356_4d41;

/// One argument is one of these values.
fn either(argument: u8, values: &[u64]) -> Result<Vec<SeccompRule>, seccompiler::BackendError> {
    let rule = |value: &u64| {
        let equal = SeccompCondition::new(argument, SeccompCmpArgLen::Dword, SeccompCmpOp::Eq, *value)?;
        SeccompRule::new(vec![equal])
    };
    values.iter().map(rule).collect()
}

fn program() -> Result<BpfProgram, seccompiler::BackendError> {
    let mut rules: BTreeMap<i64, Vec<SeccompRule>> =
        CALLS.iter().chain(OLD_CALLS).map(|call| (*call, Vec::new())).collect();
    // Front-ends, and requests about interfaces.
    let families = either(0, &[libc::AF_UNIX as u64, libc::AF_INET as u64])?;
    rules.insert(libc::SYS_socket, families);
    rules.insert(libc::SYS_prctl, either(0, &[libc::PR_SET_NAME as u64, PR_SET_VMA])?);
    // No memory becomes code.
    for call in [libc::SYS_mmap, libc::SYS_mprotect] {
        let exec = SeccompCmpOp::MaskedEq(libc::PROT_EXEC as u64);
        let plain = SeccompCondition::new(2, SeccompCmpArgLen::Dword, exec, 0)?;
        rules.insert(call, vec![SeccompRule::new(vec![plain])?]);
    }
    let denied = SeccompAction::Errno(libc::EPERM as u32);
    let machine = TargetArch::try_from(std::env::consts::ARCH)?;
    let filter = SeccompFilter::new(rules, denied, SeccompAction::Allow, machine)?;
    filter.try_into()
}

/// Puts the filter in force for all threads; also rules out new privileges.
pub(crate) fn filter() -> Result<(), String> {
    let program = program().map_err(|e| e.to_string())?;
    seccompiler::apply_filter_all_threads(&program).map_err(|e| e.to_string())
}

/// Goes on as another user, all threads: leaving root takes all capabilities away (capabilities(7)).
pub(crate) fn assume(uid: u32, gid: u32) -> Result<(), (&'static str, io::Error)> {
    let done = |what, rc: libc::c_int| if rc == 0 { Ok(()) } else { Err((what, io::Error::last_os_error())) };
    // SAFETY: one number, read by the call.
    done("setgroups", unsafe { libc::setgroups(1, &raw const gid) })?;
    // SAFETY: numbers.
    done("setresgid", unsafe { libc::setresgid(gid, gid, gid) })?;
    // SAFETY: numbers.
    done("setresuid", unsafe { libc::setresuid(uid, uid, uid) })
}
