// What the kernels iterate over: derived once from (pattern, geometry), valid for any batch size.
//
// Every pass is a gather: destination[d, m] = sum over the non-zeros of row d of
// value * packed_source[offset + m], where m is a position in a plane. That works because source
// and destination share one row pitch: a destination pixel (p, q) of image g sits at
//     m = (g * image_rows + p) * pitch + q
// and the source pixel it needs through a kernel tap sits at m plus a constant of the tap. The zero
// margin to the right of a row is the one to the left of the next; the same holds for the rows
// between two images:
//
//     0 x x x      3 x 3 kernel, padding 1, 2 x 3 image: pitch 4, and the margin costs one column
//     0 x x x      and one row.
//     0 0 0 0
//
// Where `block_rows` output channels share their positions, the inner loops take them at once, and
// each operand that they load serves them all. In forward they are destination channels: one offset
// leads to the source of all of them. In grad-input they are source channels: their vectors at one
// tap, a *group*, stay in registers while the destination channels that need them stream past. (In
// kRow those of a frame come together, and between frames a strip's accumulators are turned.)
//
// A stride in the source (forward) splits it into phases, one plane each; a stride in the
// destination (grad-input) splits that into classes, each a stride-1 gather of its own. No scatter
// anywhere.
//
// What fills the lanes of a vector is the plan's choice:
//   kPlane  neighbouring positions m of one plane. Any batch size, but a tap shifts the vector off
//           its alignment, and lanes that fall on the margin compute garbage that is not stored.
//   kRow    the row of one image, or of several narrow images side by side, in whole vectors. Taps
//           of one kernel column form a frame; between frames the accumulators are rotated by the
//           distance of the columns instead of the source, so that every load is aligned. What a
//           rotation wraps around is masked out of that frame's multiply-adds.
//   kBatch  the same pixel of as many images as there are lanes. An element of the packed source is
//           a whole vector, so every load is aligned at any tap, stride and width.
//   kMatrix no vector, but the tiles of a matrix unit, for blocks of 16 output channels: pixels as
//           in kPlane, packed as bfloat16. (In grad-input the packed channels are paired after.)
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "common/conv_shape.h"
#include "common/status.h"
#include "cpu/isa/limits.h"

namespace dsr::cpu {

enum class Lanes { kPlane, kRow, kBatch, kMatrix };

// How a [N, C, H, W] source is laid out in a packed buffer [channels][phases][plane]. An element is
// a scalar (kPlane, kRow, kMatrix) or a vector of images (kBatch).
struct PackLayout {
  struct Phase {
    int64_t row, col;       // first source row and column of the phase
    int64_t height, width;  // how many source rows and columns it has
  };
  int64_t channels = 0;
  int64_t height = 0, width = 0;         // of the source
  int64_t step_h = 1, step_w = 1;        // distance of a phase's rows and columns in the source
  std::vector<Phase> phases = {};        // those that some tap reads
  int64_t first_row = 0;                 // phase row of the first stored one, of destination row 0
  int64_t first_col = 0;                 // phase column of the first stored one
  int64_t halo_rows = 0, halo_cols = 0;  // stored rows and columns beyond the destination's
  int64_t image_rows = 0;                // rows from one image to the next
  int64_t pitch = 0;                     // elements from one row to the next
  int64_t tail = 0;   // zeros behind the last row that stand for its right margin
  int64_t plane = 0;  // elements from one phase (or channel) to the next

  int64_t channel_stride() const { return plane * static_cast<int64_t>(phases.size()); }
  int64_t elements() const { return channels * channel_stride(); }
};

// The destination pixels (row0 + step_h * p, col0 + step_w * q), p < rows, q < cols.
struct DestinationClass {
  int64_t row0, col0, rows, cols;
  int64_t table;  // its table of segments; -1: no tap reaches these pixels, they get the bias alone
};

// The non-zeros of one table. A segment (block, destination channel) is cut into frames: one, or in
// kRow one for each kernel column. kRow walks them upwards in even blocks and downwards in odd
// ones, so that the accumulators need not turn back in between.
struct Table {
  std::vector<int64_t> shifts;  // of the frames: source column minus destination column, ascending
  int64_t begin;                // of its bounds: [blocks][destination channels * frames + 1]
  int64_t frames() const { return static_cast<int64_t>(shifts.size()); }
};

// All sizes are 0 until they are planned: lay_out() fills source and destination, choose_tiling()
// the rest up to the model, make_gather_plan() what stands below it.
struct GatherPlan {
  struct Destination {
    int64_t channels = 0, height = 0, width = 0;
    int64_t step_h = 1, step_w = 1;  // of the classes
    std::vector<DestinationClass> classes = {};
  };
  // What is packed at once: `images` elements' images (kPlane: several small ones, stacked; kRow:
  // those side by side; kBatch: one) by `band_rows` destination rows of a class (all of them where
  // kPlane stacks images), of which a class has `bands`.
  struct Unit {
    int64_t images = 1, band_rows = 0, bands = 1;
  };
  // What stays in registers: rows x cols vectors (kPlane: 1 x cols, along the plane; kRow: cols =
  // row.vectors; kMatrix: cols tiles of sums, 16 pixels each).
  struct Tile {
    int64_t rows = 1, cols = 1;
  };
  // Columns of a class, and destination channels, whose accumulators are kept until they are
  // stored.
  struct Strip {
    int64_t cols = 0, channels = 0;
  };
  // Source channels whose share of a tile stays in L1, and how many such blocks there are.
  struct Block {
    int64_t channels = 0, count = 1;
  };
  // kRow: an image's row takes slot_lanes lanes (a power of two), a packed row `vectors`. kMatrix:
  // pieces of 32 pixels in a destination row, of which each half may be a row (`halves`); 0 where
  // pieces run along the plane.
  struct Row {
    int64_t slot_lanes = 0, vectors = 0, pieces = 0;
    bool halves = false;
  };
  // Images in an element of the packed source: kBatch's a vector's lanes, elsewhere one. (kPlane
  // has nothing of its own.)
  struct Batch {
    int64_t lane_images = 1;
  };

  Lanes lanes = Lanes::kPlane;
  PackLayout source;
  Destination destination;
  Unit unit;
  Tile tile;
  Strip strip;
  Block block;
  Row row;
  Batch batch;
  double cycles_per_fma = 0;  // of one vector, as the cost model expects
  int64_t block_rows = 1;     // of the pattern, that the inner loops take at once

  // A step is what one offset leads to, `block_rows` non-zeros. Ordered by table, block,
  // destination channels and frame; with groups by table, strip, frame, group and destination
  // channel.
  std::vector<int32_t> offsets;      // [steps], scalars into the packed source; with groups the
                                     // destination channel within the strip
  std::vector<int32_t> value_index;  // [nnz], which value each of the steps' non-zeros has
  std::vector<Table> tables;         // of the classes that some tap reaches
  std::vector<int32_t> bounds;       // into offsets; see Table. With groups into `groups`:
                                     // [tables][strips + 1]
  std::vector<int32_t> no_bounds;    // [destination.channels + 1] zeros, where no tap reaches
  // What grad-input keeps in registers while the steps [begin, the next group's begin) stream past.
  struct Group {
    int32_t offset;  // scalars into the packed source, of its first channel
    int32_t frame;   // of its table
    int32_t begin;
    // kMatrix: rows [begin, lower_end) have a block of the lower 16 source channels, and rows
    // [upper_begin, upper_end) one of the upper.
    int32_t lower_end, upper_begin, upper_end;
  };
  std::vector<Group> groups;  // and one more, which ends the last
  // kMatrix. Forward: where the tiles of weights of each segment begin, beside `bounds`.
  // Grad-input: a group is one tile of weights, and `begin` its first row; of each row its
  // destination channel within the strip, or -1; a step's offset is twice its row, and 1 for the
  // upper source channels.
  std::vector<int32_t> first_tiles, row_targets;
  // The processor's own that multiplies them, if any.
  MatrixUnit matrix_unit = MatrixUnit::kNone;

  int64_t image_groups(int64_t n) const {
    const int64_t together = unit.images * batch.lane_images;
    return (n + together - 1) / together;
  }
  int64_t units(int64_t n) const { return image_groups(n) * unit.bands; }
  int64_t bytes() const;
  int64_t steps() const { return static_cast<int64_t>(offsets.size()); }
  int64_t nnz() const { return static_cast<int64_t>(value_index.size()); }
  bool has_groups() const { return !groups.empty(); }
  // Destination channels that are computed together: parts of them are whole multiples of it.
  int64_t channel_step() const { return has_groups() ? strip.channels : block_rows; }
  // Segments of a block, each of `block_rows` destination channels.
  int64_t rows() const { return destination.channels / block_rows; }
  bool is_plane() const { return lanes == Lanes::kPlane || lanes == Lanes::kMatrix; }
  // Where the frames of block b begin, from destination channel d on; each ends where the next
  // begins. (Not with groups.)
  const int32_t* segments(int64_t table, int64_t b, int64_t d) const {
    if (table < 0) return no_bounds.data();
    const int64_t frames = tables[table].frames();
    return bounds.data() + tables[table].begin + b * (rows() * frames + 1) +
           d / block_rows * frames;
  }
  // The groups of the strip of destination channels from d on: [first, first of the next strip).
  const int32_t* groups_of(int64_t table, int64_t d) const {
    const int64_t strips = (destination.channels + strip.channels - 1) / strip.channels;
    return bounds.data() + table * (strips + 1) + d / strip.channels;
  }
};

// What a plan gathers: y from x (grad-weight shares this one), or grad_x from grad_y.
enum class Direction { kForward, kGradInput };

// Fails where the packed source would pass 2^31 scalars, where the pattern is not a BSR matrix of
// the shape, and where the lanes do not apply to it. element_size is 4 or 8.
Status make_gather_plan(const ConvShape& shape, const BsrPattern& pattern, int element_size,
                        Lanes lanes, Direction direction, GatherPlan* plan);

}  // namespace dsr::cpu
