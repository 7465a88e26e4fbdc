//! Devices by their place on the bus, from `/sys/bus/pci`.

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;

use super::NicError;

/// Domain, bus, device and function: `0000:3b:00.1`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Address {
    domain: u32,
    bus: u8,
    device: u8,
    function: u8,
}

/// Who made a device, and which it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Id {
    pub(crate) vendor: u16,
    pub(crate) device: u16,
}

impl FromStr for Address {
    type Err = NicError;

    /// Reads `0000:3b:00.1`, or `3b:00.1`.
    fn from_str(text: &str) -> Result<Address, NicError> {
        let wrong = || NicError::Device(format!("'{text}' is no PCI address, as in 0000:3b:00.1").into());
        let hex = |part: &str, most: usize| {
            let plain = !part.is_empty() && part.len() <= most && part.bytes().all(|b| b.is_ascii_hexdigit());
            if plain { u32::from_str_radix(part, 16).ok() } else { None }
        };
        let (place, function) = text.split_once('.').ok_or_else(wrong)?;
        let mut parts = place.rsplit(':');
        let device = parts.next().and_then(|p| hex(p, 2)).filter(|&d| d < 32);
        let bus = parts.next().and_then(|p| hex(p, 2));
        let domain = parts.next().map_or(Some(0), |p| hex(p, 8));
        let function = hex(function, 1).filter(|&f| f < 8);
        match (domain, bus, device, function, parts.next()) {
            (Some(domain), Some(bus), Some(device), Some(function), None) => {
                Ok(Address { domain, bus: bus as u8, device: device as u8, function: function as u8 })
            }
            _ => Err(wrong()),
        }
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:04x}:{:02x}:{:02x}.{}", self.domain, self.bus, self.device, self.function)
    }
}

impl Address {
    fn folder(&self) -> PathBuf {
        PathBuf::from("/sys/bus/pci/devices").join(self.to_string())
    }

    /// Vendor and device.
    pub(crate) fn id(&self) -> Result<Id, NicError> {
        let number = |name: &str| {
            let text = std::fs::read_to_string(self.folder().join(name)).ok()?;
            u16::from_str_radix(text.trim().trim_start_matches("0x"), 16).ok()
        };
        match (number("vendor"), number("device")) {
            (Some(vendor), Some(device)) => Ok(Id { vendor, device }),
            _ => Err(NicError::Device(
                format!("there is no PCI device {self}; scripts/bind status lists those there are").into(),
            )),
        }
    }

    /// The driver of the kernel that has it.
    fn driver(&self) -> Option<String> {
        let link = std::fs::read_link(self.folder().join("driver")).ok()?;
        Some(link.file_name()?.to_string_lossy().into_owned())
    }

    /// Its IOMMU group, if it is bound to vfio-pci.
    pub(crate) fn group(&self) -> Result<u32, NicError> {
        let refused = |why: String| Err(NicError::Device(why.into()));
        match self.driver().as_deref() {
            Some("vfio-pci") => {}
            Some(other) => {
                return refused(format!(
                    "device {self} is with the driver {other}; give it to VFIO: scripts/bind bind vfio-pci {self}"
                ));
            }
            None => {
                return refused(format!(
                    "device {self} has no driver; give it to VFIO: scripts/bind bind vfio-pci {self}"
                ));
            }
        }
        let link = std::fs::read_link(self.folder().join("iommu_group")).ok();
        match link.and_then(|link| link.file_name()?.to_string_lossy().parse().ok()) {
            Some(group) => Ok(group),
            None => refused(format!(
                "device {self} is behind no IOMMU: switch it on in the firmware (VT-d, AMD-Vi) and on the \
                 kernel's command line (intel_iommu=on)"
            )),
        }
    }

    /// The NUMA node it is at, if the host has several.
    pub(crate) fn node(&self) -> Option<u32> {
        std::fs::read_to_string(self.folder().join("numa_node")).ok()?.trim().parse().ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_addresses_and_nothing_else() {
        let read = |text: &str| text.parse::<Address>().ok().map(|a| a.to_string());
        for (text, full) in [
            ("0000:3b:00.1", "0000:3b:00.1"),
            ("3b:1f.7", "0000:3b:1f.7"),
            ("10000:00:04.0", "10000:00:04.0"),
            ("0:0:4.0", "0000:00:04.0"),
        ] {
            assert_eq!(read(text).as_deref(), Some(full), "{text}");
        }
        for text in
            ["", "3b:00", "3b:20.0", "3b:00.8", "+1:00.0", "g:00.0", "1:2:3:4.0", ":00.0", "vhost0", "1.0"]
        {
            assert_eq!(read(text), None, "{text}");
        }
    }
}
