//! The XDP program: packets go to the socket of their queue, but for those that are left to the kernel.

use std::fmt;
use std::str::FromStr;

/// What is left to the kernel's own network stack.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Leave {
    /// ARP, and ICMP of both versions (neighbour discovery among them).
    Neighbours,
    /// TCP to this port.
    Tcp(u16),
    /// UDP to this port.
    Udp(u16),
}

impl FromStr for Leave {
    type Err = String;

    /// `arp`, `tcp:22`, `udp:53`.
    fn from_str(text: &str) -> Result<Leave, String> {
        let port = |port: &str| port.parse().map_err(|_| format!("'{port}' is no port"));
        match text.split_once(':') {
            None if text == "arp" => Ok(Leave::Neighbours),
            Some(("tcp", number)) => Ok(Leave::Tcp(port(number)?)),
            Some(("udp", number)) => Ok(Leave::Udp(port(number)?)),
            _ => Err(format!("'{text}' is none of arp, tcp:PORT, udp:PORT")),
        }
    }
}

impl fmt::Display for Leave {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Leave::Neighbours => write!(f, "arp"),
            Leave::Tcp(port) => write!(f, "tcp:{port}"),
            Leave::Udp(port) => write!(f, "udp:{port}"),
        }
    }
}

// Opcodes of the instruction set (RFC 9669): class, size or operation, source.
const LDX_B: u8 = 0x71;
const LDX_H: u8 = 0x69;
const LDX_W: u8 = 0x61;
const LD_IMM64: u8 = 0x18;
const MOV: u8 = 0xb7;
const MOV_X: u8 = 0xbf;
const ADD: u8 = 0x07;
const AND: u8 = 0x57;
const JA: u8 = 0x05;
const JNE: u8 = 0x55;
const JEQ: u8 = 0x15;
const JGT_X: u8 = 0x2d;
const CALL: u8 = 0x85;
const EXIT: u8 = 0x95;

const XDP_PASS: i32 = 2;
const REDIRECT_MAP: i32 = 51;
const PSEUDO_MAP_FD: u8 = 1;

const ETHERNET: i32 = 14;
const ARP: u16 = 0x0806;
const IPV4: u16 = 0x0800;
const IPV6: u16 = 0x86dd;
const TCP: u8 = 6;
const UDP: u8 = 17;
const ICMP: u8 = 1;
const ICMPV6: u8 = 58;

#[derive(Clone, Copy, PartialEq, Eq)]
enum Label {
    Steer,
    Pass,
    Ipv6,
}

/// Instructions, and jumps whose ends are not known yet. Registers: 0 scratch, 2 packet, 3 its end, 4 and 5
/// scratch, 6 context.
#[derive(Default)]
struct Assembler {
    code: Vec<u64>,
    jumps: Vec<(usize, Label)>,
    labels: Vec<(Label, usize)>,
}

impl Assembler {
    fn put(&mut self, opcode: u8, dst: u8, src: u8, off: i16, imm: i32) {
        let word = u64::from(opcode)
            | u64::from(dst | src << 4) << 8
            | u64::from(off as u16) << 16
            | u64::from(imm as u32) << 32;
        self.code.push(word);
    }

    fn jump(&mut self, opcode: u8, dst: u8, src: u8, imm: i32, to: Label) {
        self.jumps.push((self.code.len(), to));
        self.put(opcode, dst, src, 0, imm);
    }

    fn label(&mut self, label: Label) {
        self.labels.push((label, self.code.len()));
    }

    /// Goes on only if the packet's first part has `bytes` bytes.
    fn need(&mut self, bytes: i32) {
        self.put(MOV_X, 4, 2, 0, 0);
        self.put(ADD, 4, 0, 0, bytes);
        self.jump(JGT_X, 4, 3, 0, Label::Steer);
    }

    /// The protocols above IP, register 5 the protocol, ports at byte `l4`.
    fn transport(&mut self, leave: &[Leave], icmp: u8, l4: i32) {
        if leave.contains(&Leave::Neighbours) {
            self.jump(JEQ, 5, 0, icmp.into(), Label::Pass);
        }
        let ports = || {
            leave.iter().filter_map(|leave| match leave {
                Leave::Neighbours => None,
                Leave::Tcp(port) => Some((TCP, *port)),
                Leave::Udp(port) => Some((UDP, *port)),
            })
        };
        if ports().next().is_some() {
            self.need(l4 + 4);
            self.put(LDX_H, 0, 2, (l4 + 2) as i16, 0);
        }
        for (protocol, port) in ports() {
            // Past the next instruction.
            self.put(JNE, 5, 0, 1, protocol.into());
            self.jump(JEQ, 0, 0, port.to_be().into(), Label::Pass);
        }
        self.jump(JA, 0, 0, 0, Label::Steer);
    }

    fn finish(mut self) -> Vec<u64> {
        for (at, to) in std::mem::take(&mut self.jumps) {
            let end = self.labels.iter().find(|(label, _)| *label == to).expect("every label is set").1;
            let off = (end as i64 - at as i64 - 1) as u16;
            self.code[at] |= u64::from(off) << 16;
        }
        self.code
    }
}

/// The program: what is to be left goes to the kernel, the rest to the socket that `map` has for its queue,
/// to the kernel where there is none.
pub(super) fn assemble(map: i32, leave: &[Leave]) -> Vec<u64> {
    let mut asm = Assembler::default();
    asm.put(MOV_X, 6, 1, 0, 0);
    if !leave.is_empty() {
        asm.put(LDX_W, 2, 6, 0, 0);
        asm.put(LDX_W, 3, 6, 4, 0);
        asm.need(ETHERNET);
        asm.put(LDX_H, 5, 2, 12, 0);
        if leave.contains(&Leave::Neighbours) {
            asm.jump(JEQ, 5, 0, ARP.to_be().into(), Label::Pass);
        }
        asm.jump(JEQ, 5, 0, IPV6.to_be().into(), Label::Ipv6);
        asm.jump(JNE, 5, 0, IPV4.to_be().into(), Label::Steer);
        asm.need(ETHERNET + 20);
        // Headers with options are not looked into.
        asm.put(LDX_B, 0, 2, ETHERNET as i16, 0);
        asm.put(AND, 0, 0, 0, 15);
        asm.jump(JNE, 0, 0, 5, Label::Steer);
        asm.put(LDX_B, 5, 2, ETHERNET as i16 + 9, 0);
        asm.transport(leave, ICMP, ETHERNET + 20);
        asm.label(Label::Ipv6);
        asm.need(ETHERNET + 40);
        asm.put(LDX_B, 5, 2, ETHERNET as i16 + 6, 0);
        asm.transport(leave, ICMPV6, ETHERNET + 40);
    }
    asm.label(Label::Steer);
    asm.put(LDX_W, 2, 6, 16, 0);
    asm.put(LD_IMM64, 1, PSEUDO_MAP_FD, 0, map);
    asm.put(0, 0, 0, 0, 0);
    asm.put(MOV, 3, 0, 0, XDP_PASS);
    asm.put(CALL, 0, 0, 0, REDIRECT_MAP);
    asm.put(EXIT, 0, 0, 0, 0);
    if !leave.is_empty() {
        asm.label(Label::Pass);
        asm.put(MOV, 0, 0, 0, XDP_PASS);
        asm.put(EXIT, 0, 0, 0, 0);
    }
    asm.finish()
}
