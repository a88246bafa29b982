// Prefill on AMX: matrix products in bf16 for `linear` and `moe` from AMX_ROWS rows on.
//
// Per call the activations become bf16 tiles once (16 tokens x 32 columns). A task owns some row groups; for each 256 columns of
// two of them it expands the packed weights into bf16 tiles (16 KB, which stay in the first-level cache) and multiplies them with
// all tokens of the pass, a product of 2 x 2 tiles at a time. Sums are f32 over the whole of K: no scale ever touches them.
//
// Why bf16 and not int8, whose peak is twice as high: a group of 32 columns with a scale of its own fills half of an int8 tile, and
// its 16 x 16 sums must be stored, converted, scaled by row and by token and added, 16 + 3 x 16 / 2 cycles on top of 16 for the half
// product; bf16 needs 16 for the same 32 columns and scales each weight once for all tokens. int8 with one scale per row would be
// faster, but the weights would have to be rounded again.
//
// Cycles per weight and core, computed; nothing of this was measured on hardware. Expanding takes about 1/8 (amx_weights.h), T tokens
// take T / 512, a product of tiles each 16 cycles. So 89 % of the units' rate is the limit at 512 tokens and 80 % at 256, if the loads
// hide behind the products: the weights' tiles come from the first-level cache, those of the activations from the second (256
// columns x 512 tokens are 256 KB), and the sums of a task (512 tokens x up to 256 rows, 512 KB) return there between two blocks of
// columns. That is 24 KB per 512 cycles, 47 bytes a cycle of the 64 that the second-level cache has at best. 60 to 70 % is to be
// expected.
//
// Numbers: weights and activations are rounded to bf16 (nearest, ties to even), each by at most 2^-8, so that a product is off by no
// more than about 2^-7 of |x||w| and typically by 2^-9 of it over sqrt(K): less than the 8-bit activations of linear.h. Sums are f32;
// denormals count as zero. F32 weights keep their precision elsewhere: routers are stored so.
#include "amx_detect.h"
#include "layout.h"
#include "pool.h"

#if defined(KC_EMULATE_AMX)
#include "amx_emulated.h"
#else
#include <immintrin.h>
#endif

namespace kc_matrix {
namespace {
#include "isa.h"
#include "formats.h"
#include "routing.h"
#include "amx_tiles.h"
#include "amx_weights.h"
#include "amx_linear.h"
#include "amx_moe.h"
}  // namespace
}  // namespace kc_matrix

extern "C" const AmxTable kc_amx = {kc_matrix::linear, kc_matrix::moe, kc_matrix::multiply_probe};
