//! Every system call of the data plane.
