// AMX needs the CPU, a system that saves the tile registers (XCR0 bits 17 and 18), and, since they enlarge every signal frame by 8 KB,
// the system's permission for this process: Linux refuses it, among others, while a thread has an alternative signal stack that
// would become too small. It is asked for once, before any tile instruction, and holds for all threads; the answer is kept.
#include "amx_detect.h"

#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>

#if KC_AMX && !defined(KC_EMULATE_AMX) && defined(__linux__)
#include <cpuid.h>
#include <sys/syscall.h>
#include <unistd.h>
#define KC_ASK_THE_MACHINE
#endif

#if defined(KC_ASK_THE_MACHINE)
namespace {

constexpr int REQUEST_PERMISSION = 0x1023, TILE_DATA = 18;  // ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA
constexpr uint64_t TILE_STATE = 3u << 17;

bool permitted() { return syscall(SYS_arch_prctl, REQUEST_PERMISSION, TILE_DATA) == 0; }

// Tiles with bf16 in the shape that amx_tiles.h configures, and the AVX-512 instructions that its unit adds to those of
// AVX-512-VNNI: VBMI and BF16.
bool cpu_has_amx() {
    unsigned a, b, c, d;
    if (!__get_cpuid_count(7, 0, &a, &b, &c, &d) || !(d >> 24 & 1) || !(d >> 22 & 1) || !(c >> 1 & 1)) return false;
    if (!__get_cpuid_count(7, 1, &a, &b, &c, &d) || !(a >> 5 & 1)) return false;
    if (!__get_cpuid_count(0x1d, 1, &a, &b, &c, &d)) return false;
    return b >> 16 >= 8 && (b & 0xffff) == 64 && (c & 0xffff) >= 16;
}

bool system_saves_tiles() {
    unsigned a, b, c, d;
    if (!__get_cpuid(1, &a, &b, &c, &d) || !(c >> 27 & 1)) return false;
    uint32_t low, high;
    __asm__ volatile("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
    return (low & TILE_STATE) == TILE_STATE;
}

AmxState ask() {
    if (!cpu_has_amx()) return AMX_NO_CPU;
    if (!system_saves_tiles()) return AMX_NO_SYSTEM;
    return permitted() ? AMX_READY : AMX_NO_PERMISSION;
}

}  // namespace

AmxState amx_state() {
    static const AmxState state = ask();
    return state;
}

void amx_require_permission() {
    if (permitted()) return;
    fputs("kcode: the system has taken back the permission to use AMX; set KCODE_CPU_ISA=avx512vnni\n", stderr);
    abort();
}

#elif defined(KC_EMULATE_AMX)

// Set by tests: what the emulated machine answers, and how many threads have asked.
extern "C" {
__attribute__((visibility("default"))) int kc_emulated_amx_state = AMX_READY;
__attribute__((visibility("default"))) int kc_emulated_permissions = 0;
}

AmxState amx_state() { return (AmxState)kc_emulated_amx_state; }
void amx_require_permission() { __atomic_fetch_add(&kc_emulated_permissions, 1, __ATOMIC_SEQ_CST); }

#else

AmxState amx_state() { return AMX_NOT_COMPILED; }
void amx_require_permission() {}

#endif
