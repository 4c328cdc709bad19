// What the kernels iterate over: derived once from (pattern, geometry), valid for any batch size.
//
// Every pass is a gather: destination[d, m] = sum over the non-zeros of row d of
// value * packed_source[offset + m], where m runs over a whole plane at once. That works because
// source and destination share one row pitch: a destination pixel (p, q) of image g sits at
//     m = (g * image_rows + p) * pitch + q
// and the source pixel it needs through a kernel tap sits at m plus a constant of the tap. The zero
// margin to the right of a row is the one to the left of the next; the same holds for the rows
// between two images:
//
//     0 x x x      3 x 3 kernel, padding 1, 2 x 3 image: pitch 4, and the margin costs one column
//     0 x x x      and one row. Lanes that fall on the margin compute garbage and are not stored.
//     0 0 0 0
//
// A stride in the source (forward) splits it into phases, one plane each; a stride in the
// destination (grad-input) splits that into classes, each a stride-1 gather of its own. No scatter
// anywhere.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "common/conv_shape.h"
#include "common/status.h"

namespace dsr::cpu {

inline constexpr int kMaxTileElements = 512;  // the widest tile of any instruction set
inline constexpr int kDestinationBlock =
    128;                           // destination channels whose accumulators are kept at once
inline constexpr int kSlack = 64;  // readable elements behind every packed buffer

// How a [N, C, H, W] source is laid out in a packed buffer [channels][phases][plane].
struct PackLayout {
  struct Phase {
    int64_t row, col;       // first source row and column of the phase
    int64_t height, width;  // how many source rows and columns it has
  };
  int64_t channels;
  int64_t step_h, step_w;     // distance of a phase's rows and columns in the source
  std::vector<Phase> phases;  // those that some tap reads
  int64_t first_row,
      first_col;      // phase coordinates of the first stored row (of destination row 0) and column
  int64_t halo_rows;  // stored rows beyond the destination's
  int64_t image_rows;  // rows from one image to the next
  int64_t pitch;       // elements from one row to the next
  int64_t plane;       // elements from one phase (or channel) to the next

  int64_t channel_stride() const { return plane * static_cast<int64_t>(phases.size()); }
  int64_t elements() const { return channels * channel_stride() + kSlack; }
};

// The destination pixels (row0 + step_h * p, col0 + step_w * q), p < rows, q < cols.
struct DestinationClass {
  int64_t row0, col0, rows, cols;
  int64_t table;  // its table of segments; -1: no tap reaches these pixels, they get the bias alone
};

struct GatherPlan {
  PackLayout source;
  int64_t destination_channels;
  int64_t step_h, step_w;  // of the classes in the destination
  std::vector<DestinationClass> classes;
  int64_t images;     // images packed together at most
  int64_t band_rows;  // destination rows (of a class) packed together at most; all of them where
                      // images > 1
  int64_t bands;
  int64_t channel_block;  // source channels whose packed tile stays in L1
  int64_t blocks;
  std::vector<int32_t> offsets;  // [nnz], elements into the packed source, destination-major
  std::vector<int32_t>
      value_index;     // [nnz], which value each offset belongs to; empty: the same order
  int64_t tables = 0;  // classes that some tap reaches
  std::vector<int32_t> segment_begin;  // [tables][blocks + 1][destination_channels], into offsets

  int64_t units(int64_t n) const { return (n + images - 1) / images * bands; }
  int64_t bytes() const;
  // Begins of the segments of block b of a table; the next `destination_channels` entries are their
  // ends.
  const int32_t* segments(int64_t table, int64_t b) const {
    return segment_begin.data() + (table * (blocks + 1) + b) * destination_channels;
  }
};

// element_size is 4 or 8. Both fail where the packed source would pass 2^31 elements.
Status make_forward_plan(const ConvShape& shape, const CsrPattern& pattern, int element_size,
                         GatherPlan* plan);
Status make_grad_input_plan(const ConvShape& shape, const CsrPattern& pattern, int element_size,
                            GatherPlan* plan);

}  // namespace dsr::cpu
