//! Pauses of a core between two polls that find nothing: the instructions by which a CPU waits for a moment without leaving the program, and which of them it has. A
//! core that pauses takes less power, and leaves more to what shares it; how much is the CPU's affair. This is *not* sleeping: the kernel does not know of it.

#![cfg_attr(not(test), warn(clippy::arithmetic_side_effects))]

use std::fmt;

/// How the CPU pauses between two polls, for half a microsecond or so.
///
/// DPDK: `rte_power_pause`.
///
/// ```
/// # use wholebar_core as wholebar;
/// use wholebar::cores::Pause;
///
/// // Which it is, is asked of the CPU once.
/// let pause = Pause::of_this_cpu();
/// println!("between two polls: {pause}");
/// pause.pause();
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Pause(Kind);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[cfg_attr(not(any(target_arch = "x86_64", target_arch = "aarch64", target_arch = "powerpc64")), allow(dead_code))]
enum Kind {
    /// TPAUSE or WFET for so many ticks of the time stamp counter, or of the generic timer; `wait`, which takes no time.
    Timed(u32),
    /// Such an instruction there is none: a hint that lasts for some tens of cycles.
    Hint,
}

impl Pause {
    /// Returns what this CPU has, as it tells itself (x86-64: CPUID leaf 7, WAITPKG) or by the kernel's word (AT_HWCAP2: WFXT of aarch64, ISA 3.1 of powerpc64).
    pub fn of_this_cpu() -> Self {
        Self(if cfg!(any(miri, loom)) { Kind::Hint } else { timed().map_or(Kind::Hint, Kind::Timed) })
    }

    /// Returns whether it lasts long enough to take power off the core: about half a microsecond. Else it is the hint of [`std::hint::spin_loop`], which
    /// lasts some tens of cycles.
    pub fn is_timed(self) -> bool {
        matches!(self.0, Kind::Timed(_))
    }

    /// Pauses. It may end early, by an interrupt for one.
    #[inline]
    pub fn pause(self) {
        match self.0 {
            Kind::Timed(ticks) => wait(ticks),
            Kind::Hint => std::hint::spin_loop(),
        }
    }
}

impl fmt::Display for Pause {
    /// Writes the instruction's name.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self.0 {
            Kind::Timed(_) if cfg!(target_arch = "x86_64") => "TPAUSE",
            Kind::Timed(_) if cfg!(target_arch = "aarch64") => "WFET",
            Kind::Timed(_) => "wait",
            Kind::Hint if cfg!(target_arch = "x86_64") => "PAUSE",
            Kind::Hint if cfg!(target_arch = "aarch64") => "ISB",
            Kind::Hint => "a hint",
        })
    }
}

/// For how many ticks, where the CPU has the instruction. The clock of an x86-64 CPU that has it runs at 1 to 4 GHz. (Intel 64 and IA-32 Software Developer's Manual 2,
/// CPUID: EAX 07h, ECX bit 5.)
#[cfg(target_arch = "x86_64")]
fn timed() -> Option<u32> {
    const WAITPKG: u32 = 1 << 5;
    // Newer Rust has it safe; it was unsafe for CPUs without CPUID.
    #[allow(unused_unsafe)]
    // SAFETY: every x86-64 CPU has CPUID; a leaf that it does not know is answered with one that it knows, hence the look at the highest.
    let ecx = unsafe {
        let highest = std::arch::x86_64::__cpuid(0).eax;
        if highest >= 7 { std::arch::x86_64::__cpuid_count(7, 0).ecx } else { 0 }
    };
    (ecx & WAITPKG != 0).then_some(1024)
}

/// The clock's frequency is in a register (Arm Architecture Reference Manual, CNTFRQ_EL0): 1 GHz, or some tens of MHz.
#[cfg(target_arch = "aarch64")]
fn timed() -> Option<u32> {
    const HWCAP2_WFXT: usize = 1 << 31;
    if rustix::param::linux_hwcap().1 & HWCAP2_WFXT == 0 {
        return None;
    }
    let hertz: u64;
    // SAFETY: reads a register that Linux lets every program read, and nothing else.
    unsafe { std::arch::asm!("mrs {}, cntfrq_el0", out(reg) hertz, options(nomem, nostack, preserves_flags)) };
    u32::try_from(hertz / 2_000_000).ok().filter(|ticks| *ticks > 0)
}

/// The instruction has no limit to be given: it is short by itself (Power ISA 3.1, Book II, `wait` with WC = 0b10, pause_short).
#[cfg(target_arch = "powerpc64")]
fn timed() -> Option<u32> {
    const PPC_FEATURE2_ARCH_3_1: usize = 0x0004_0000;
    (rustix::param::linux_hwcap().1 & PPC_FEATURE2_ARCH_3_1 != 0).then_some(0)
}

#[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64", target_arch = "powerpc64")))]
fn timed() -> Option<u32> {
    None
}

/// Waits for so many ticks, or less. Only where [`timed`] found the instruction: elsewhere the CPU ends the process, or takes it for another one.
#[inline]
fn wait(ticks: u32) {
    // To C0.1, from which it comes back sooner (bit 0 of the operand), until the clock is past EDX:EAX. The kernel limits it, too.
    #[cfg(all(target_arch = "x86_64", not(miri)))]
    // SAFETY: reads the clock and waits: the registers named are all that change, and the flags.
    unsafe {
        std::arch::asm!(
            "rdtsc", "add eax, {ticks:e}", "adc edx, 0", "tpause ecx",
            ticks = in(reg) ticks, in("ecx") 1u32, out("eax") _, out("edx") _, options(nomem, nostack)
        )
    };
    // WFET, by the number of its encoding: assemblers know the name only where the CPU built for has it.
    #[cfg(all(target_arch = "aarch64", not(miri)))]
    // SAFETY: reads the clock and waits: the register named is all that changes.
    unsafe {
        std::arch::asm!(
            "mrs x9, cntvct_el0", "add x9, x9, {ticks}", ".inst 0xd5031009",
            ticks = in(reg) u64::from(ticks), out("x9") _, options(nomem, nostack, preserves_flags)
        )
    };
    // wait 2,0, by the number of its encoding, as above.
    #[cfg(all(target_arch = "powerpc64", not(miri)))]
    // SAFETY: waits, and changes nothing.
    unsafe {
        std::arch::asm!(".long 0x7c40003c", options(nomem, nostack, preserves_flags))
    };
    let _ = ticks;
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Each ends by itself, whatever the CPU has, and what it has is told.
    #[test]
    fn a_pause_ends() {
        let pause = Pause::of_this_cpu();
        (0..1000).for_each(|_| pause.pause());
        Pause(Kind::Hint).pause();
        assert_eq!(pause.is_timed(), timed().is_some() && !cfg!(any(miri, loom)));
        assert!(!pause.to_string().is_empty());
    }

    /// The kernel's list of what the CPU has says the same.
    #[cfg(all(target_arch = "x86_64", target_os = "linux", not(miri)))]
    #[test]
    fn the_kernel_agrees() {
        let Ok(cpus) = std::fs::read_to_string("/proc/cpuinfo") else { return };
        let Some(flags) = cpus.lines().find(|line| line.starts_with("flags")) else { return };
        assert_eq!(timed().is_some(), flags.split_whitespace().any(|flag| flag == "waitpkg"), "{flags}");
    }
}
