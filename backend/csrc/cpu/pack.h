// Packing and exact unpacking. See pack.cpp.
#pragma once
#include <stdint.h>

int64_t packed_bytes(int format, int rows, int columns, int lanes);
// INT4 alone: scales not null: `source` has the nibbles alone, [rows][columns / 2], and `scales` the bf16s, [rows][columns / 32].
void pack_rows(int format, const uint8_t *source, const uint8_t *scales, int rows, int columns, int lanes, uint8_t *packed);
// out[i] = row ids[i] as float32, equal to GGUF's dequantisation bit for bit. lanes 0: `data` holds plain rows.
void unpack_rows(int format, const uint8_t *data, int columns, int lanes, const int32_t *ids, int count, float *out);
