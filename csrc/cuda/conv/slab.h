// How destination pixels meet the part of the source that a thread block keeps in shared memory.
//
// Kernels of a pass see destination pixels as one sequence of positions,
//
//     position = ((group of images * chunks + chunk) * rows + row) * tile_cols + column in chunk
//
// and a block takes as many consecutive ones as a tile has. A position stands for kVector images at
// once (as many as fit 16 bytes): element n of a vector is image group * kVector + n, so every tap,
// stride and width reads aligned 16-byte vectors, and padding costs zeros in the slab, no test.
//
//     slab of one channel:   row 0   v v v v v v v v . .      v: kVector images of a source pixel
//     (pitch vectors a row)  row 1   v v v v v v v v . .      the columns of one phase of the
//                            row 2   v v v v v v v v . .      column stride lie side by side
//
// The slab holds whole rows of chunks, margins included: those from the tile's first row to the
// last one that its last row reaches. Where an image ends inside a tile, the next image's rows
// follow.
#pragma once

#include <cstdint>

#include "common/conv_shape.h"
#include "cuda/conv/fast_divisor.h"

namespace dsr::cuda {

// One class of destination pixels: all of a forward pass; of a strided grad-input those whose row
// and column have the same remainder.
struct Slab {
  int32_t rows, cols;         // destination pixels of the class in one image
  int32_t tile_cols, chunks;  // its columns are cut into chunks of tile_cols
  int32_t height, width;      // of a source image
  int32_t first_h, first_w;  // source pixel of destination (0, 0) under the first tap; < 0: padding
  int32_t row_step, col_step;  // source pixels from one destination pixel to the next
  int32_t reach_rows;          // slab rows a position reads below its own
  int32_t image_rows;          // slab rows of one chunk of one image
  int32_t slab_cols;           // source columns a chunk reads
  int32_t phase_cols;          // vectors from one phase of columns to the next
  int32_t pitch, plane;        // vectors from row to row, and from channel to channel
  int32_t images;              // N
  int32_t positions;           // of all images
  FastDivisor by_tile_cols, by_rows, by_chunks, by_image_rows, by_slab_cols, by_col_step;

  void prepare() {
    by_tile_cols = FastDivisor(tile_cols);
    by_rows = FastDivisor(rows);
    by_chunks = FastDivisor(chunks);
    by_image_rows = FastDivisor(image_rows);
    by_slab_cols = FastDivisor(slab_cols);
    by_col_step = FastDivisor(col_step);
  }
};

}  // namespace dsr::cuda
