//! Fields by the names they have on the wire: `NXM_OF_IP_SRC`, `OXM_OF_IPV4_SRC`.

use super::fields::{CLASS_NX, CLASS_NXM, CLASS_OXM, CLASS_PKT_REG, Field, Header};

/// Names of `OFPXMC_NXM_0`, by number.
const NXM: &[(u8, &str)] = &[
    (0, "IN_PORT"),
    (1, "ETH_DST"),
    (2, "ETH_SRC"),
    (3, "ETH_TYPE"),
    (4, "VLAN_TCI"),
    (5, "IP_TOS"),
    (6, "IP_PROTO"),
    (7, "IP_SRC"),
    (8, "IP_DST"),
    (9, "TCP_SRC"),
    (10, "TCP_DST"),
    (11, "UDP_SRC"),
    (12, "UDP_DST"),
    (13, "ICMP_TYPE"),
    (14, "ICMP_CODE"),
    (15, "ARP_OP"),
    (16, "ARP_SPA"),
    (17, "ARP_TPA"),
];
/// Names of `OFPXMC_NXM_1`, by number, without registers.
const NX: &[(u8, &str)] = &[
    (16, "TUN_ID"),
    (17, "ARP_SHA"),
    (18, "ARP_THA"),
    (19, "IPV6_SRC"),
    (20, "IPV6_DST"),
    (21, "ICMPV6_TYPE"),
    (22, "ICMPV6_CODE"),
    (23, "ND_TARGET"),
    (24, "ND_SLL"),
    (25, "ND_TLL"),
    (26, "IP_FRAG"),
    (27, "IPV6_LABEL"),
    (28, "IP_ECN"),
    (29, "IP_TTL"),
    (30, "MPLS_TTL"),
    (31, "TUN_IPV4_SRC"),
    (32, "TUN_IPV4_DST"),
    (33, "PKT_MARK"),
    (34, "TCP_FLAGS"),
    (35, "DP_HASH"),
    (36, "RECIRC_ID"),
    (37, "CONJ_ID"),
    (38, "TUN_GBP_ID"),
    (39, "TUN_GBP_FLAGS"),
    (104, "TUN_FLAGS"),
    (105, "CT_STATE"),
    (106, "CT_ZONE"),
    (107, "CT_MARK"),
    (108, "CT_LABEL"),
    (109, "TUN_IPV6_SRC"),
    (110, "TUN_IPV6_DST"),
    (119, "CT_NW_PROTO"),
    (120, "CT_NW_SRC"),
    (121, "CT_NW_DST"),
    (122, "CT_IPV6_SRC"),
    (123, "CT_IPV6_DST"),
    (124, "CT_TP_SRC"),
    (125, "CT_TP_DST"),
];
/// Names of `OFPXMC_OPENFLOW_BASIC`, by number.
const OXM: &[(u8, &str)] = &[
    (0, "IN_PORT"),
    (2, "METADATA"),
    (3, "ETH_DST"),
    (4, "ETH_SRC"),
    (5, "ETH_TYPE"),
    (6, "VLAN_VID"),
    (7, "VLAN_PCP"),
    (8, "IP_DSCP"),
    (9, "IP_ECN"),
    (10, "IP_PROTO"),
    (11, "IPV4_SRC"),
    (12, "IPV4_DST"),
    (13, "TCP_SRC"),
    (14, "TCP_DST"),
    (15, "UDP_SRC"),
    (16, "UDP_DST"),
    (17, "SCTP_SRC"),
    (18, "SCTP_DST"),
    (19, "ICMPV4_TYPE"),
    (20, "ICMPV4_CODE"),
    (21, "ARP_OP"),
    (22, "ARP_SPA"),
    (23, "ARP_TPA"),
    (24, "ARP_SHA"),
    (25, "ARP_THA"),
    (26, "IPV6_SRC"),
    (27, "IPV6_DST"),
    (28, "IPV6_FLABEL"),
    (29, "ICMPV6_TYPE"),
    (30, "ICMPV6_CODE"),
    (31, "IPV6_ND_TARGET"),
    (32, "IPV6_ND_SLL"),
    (33, "IPV6_ND_TLL"),
    (34, "MPLS_LABEL"),
    (35, "MPLS_TC"),
    (36, "MPLS_BOS"),
    (38, "TUNNEL_ID"),
];

fn lookup(list: &[(u8, &str)], name: &str, class: u16) -> Option<Field> {
    let (number, _) = list.iter().find(|(_, n)| *n == name)?;
    Field::of(Header { class, experimenter: 0, number: *number })
}

/// The field of this name.
pub(super) fn by_wire_name(name: &str) -> Option<Field> {
    let numbered = |prefix: &str, class, base: u8| {
        let number = name.strip_prefix(prefix)?.parse::<u8>().ok()?;
        Field::of(Header { class, experimenter: 0, number: base.checked_add(number)? })
    };
    numbered("NXM_NX_REG", CLASS_NX, 0)
        .or_else(|| numbered("NXM_NX_XXREG", CLASS_NX, 111))
        .or_else(|| numbered("OXM_OF_PKT_REG", CLASS_PKT_REG, 0))
        .or_else(|| lookup(NXM, name.strip_prefix("NXM_OF_")?, CLASS_NXM))
        .or_else(|| lookup(NX, name.strip_prefix("NXM_NX_")?, CLASS_NX))
        .or_else(|| lookup(OXM, name.strip_prefix("OXM_OF_")?, CLASS_OXM))
        .or(match name {
            "ONFOXM_ET_TCP_FLAGS" => Some(Field::TcpFlags),
            "ONFOXM_ET_ACTSET_OUTPUT" => Some(Field::ActsetOutput),
            "NXOXM_ET_DP_HASH" => Some(Field::DpHash),
            _ => None,
        })
}

/// Its name on the wire, as `ovs-ofctl` prints it in `load` and `move`: the Nicira one where it has one.
pub fn wire_name(field: Field) -> String {
    let info = field.info();
    let find = |list: &[(u8, &'static str)], number| list.iter().find(|(n, _)| *n == number).map(|(_, s)| *s);
    let of = |header: Header| match header.class {
        CLASS_NXM => find(NXM, header.number).map(|s| format!("NXM_OF_{s}")),
        CLASS_NX if header.number < 16 => Some(format!("NXM_NX_REG{}", header.number)),
        CLASS_NX if (111..115).contains(&header.number) => {
            Some(format!("NXM_NX_XXREG{}", header.number - 111))
        }
        CLASS_NX => find(NX, header.number).map(|s| format!("NXM_NX_{s}")),
        CLASS_OXM => find(OXM, header.number).map(|s| format!("OXM_OF_{s}")),
        CLASS_PKT_REG => Some(format!("OXM_OF_PKT_REG{}", header.number)),
        _ => None,
    };
    info.nxm.and_then(of).or_else(|| info.oxm.and_then(of)).unwrap_or_else(|| info.name.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_field_is_found_by_what_it_prints() {
        for &f in Field::ALL {
            let name = wire_name(f);
            assert_eq!(Field::named(&name), Some(f), "{name}");
        }
        assert_eq!(wire_name(Field::NwSrc), "NXM_OF_IP_SRC");
        assert_eq!(wire_name(Field::Xreg2), "OXM_OF_PKT_REG2");
        assert_eq!(Field::named("OXM_OF_IPV6_FLABEL"), Some(Field::Ipv6Label));
    }
}
