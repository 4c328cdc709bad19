#include "cpu/gather_plan.h"

#include <algorithm>
#include <limits>

#include "cpu/dispatch.h"

namespace dsr::cpu {
namespace {

constexpr int64_t kPackedBytes =
    160 << 10;  // a packed unit should stay in L2 beside what it is used with
constexpr int64_t kL1Bytes = 24 << 10;  // a channel block's share of L1
constexpr int64_t kMaxImages = 256;
constexpr int64_t kMinSegment =
    6;  // shorter segments cost more in loop overhead than L1 gives back

int64_t floor_div(int64_t a, int64_t b) { return a / b - (a % b != 0 && (a % b < 0) != (b < 0)); }
int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

// Along one axis, tap k meets source index p * stride + (k * dilation - pad); with residue and
// quotient of that constant by the stride, it is element (p + quotient) of the residue's phase.
struct Tap {
  int64_t residue, quotient;
};

std::vector<Tap> axis_taps(int64_t kernel, int64_t stride, int64_t pad, int64_t dilation) {
  std::vector<Tap> taps;
  for (int64_t k = 0; k < kernel; ++k) {
    const int64_t position = k * dilation - pad;
    const int64_t quotient = floor_div(position, stride);
    taps.push_back({position - quotient * stride, quotient});
  }
  return taps;
}

// Rows or columns of the packed source: `first` .. first + destination + halo - 1, of which
// `shared` zeros at the end are also the zeros at the start of the next row or image.
struct Axis {
  int64_t first, halo, distance, tail;
};

Axis pack_axis(const std::vector<Tap>& taps, int64_t sign, int64_t destination, int64_t source) {
  int64_t low = std::numeric_limits<int64_t>::max(), high = std::numeric_limits<int64_t>::min();
  for (const Tap& tap : taps) {
    low = std::min(low, sign * tap.quotient);
    high = std::max(high, sign * tap.quotient);
  }
  const int64_t tail = std::max<int64_t>(0, destination + high - source);
  const int64_t shared = std::min({std::max<int64_t>(0, -low), tail, high - low});
  return {low, high - low, destination + high - low - shared, shared};
}

// One pass over the taps, in the terms both passes share.
struct Pass {
  std::vector<Tap> rows, cols;
  int64_t sign;  // +1: residues are phases of the source (forward); -1: classes of the destination
  int64_t source_channels, source_h, source_w;
  int64_t destination_channels, destination_h, destination_w;
};

bool contains(const std::vector<Tap>& taps, int64_t residue) {
  return std::any_of(taps.begin(), taps.end(), [&](const Tap& t) { return t.residue == residue; });
}

// The classes that have pixels, and those that have taps (and then a table of segments).
void lay_out_classes(const Pass& pass, GatherPlan* plan) {
  const int64_t height = pass.destination_h, width = pass.destination_w;
  plan->classes.clear();
  plan->tables = 0;
  for (int64_t r = 0; r < plan->step_h; ++r) {
    for (int64_t c = 0; c < plan->step_w; ++c) {
      const bool has_taps = pass.sign > 0 || (contains(pass.rows, r) && contains(pass.cols, c));
      if (!has_taps && (r >= height || c >= width)) continue;
      plan->classes.push_back({r, c, std::max<int64_t>(0, ceil_div(height - r, plan->step_h)),
                               std::max<int64_t>(0, ceil_div(width - c, plan->step_w)),
                               has_taps ? plan->tables++ : -1});
    }
  }
}

void lay_out(const ConvShape& s, const Pass& pass, int element_size, GatherPlan* plan) {
  const bool forward = pass.sign > 0;
  PackLayout& l = plan->source;
  l.channels = pass.source_channels;
  l.step_h = forward ? s.stride_h : 1;
  l.step_w = forward ? s.stride_w : 1;
  plan->step_h = forward ? 1 : s.stride_h;
  plan->step_w = forward ? 1 : s.stride_w;
  l.phases.clear();
  for (int64_t r = 0; r < l.step_h; ++r) {
    for (int64_t c = 0; c < l.step_w; ++c) {
      if (forward && !(contains(pass.rows, r) && contains(pass.cols, c))) continue;
      l.phases.push_back({r, c, std::max<int64_t>(0, ceil_div(pass.source_h - r, l.step_h)),
                          std::max<int64_t>(0, ceil_div(pass.source_w - c, l.step_w))});
    }
  }
  lay_out_classes(pass, plan);
  const int64_t rows = plan->classes[0].rows, cols = plan->classes[0].cols;  // the largest class
  const Axis vertical = pack_axis(pass.rows, pass.sign, rows, l.phases[0].height);
  const Axis horizontal = pack_axis(pass.cols, pass.sign, cols, l.phases[0].width);
  l.first_row = vertical.first;
  l.halo_rows = vertical.halo;
  l.image_rows = vertical.distance;
  l.first_col = horizontal.first;
  l.pitch = horizontal.distance;

  const int64_t budget =
      kPackedBytes / element_size / (l.channels * static_cast<int64_t>(l.phases.size()));
  const int64_t tile = tile_elements(element_size);
  plan->images = 1;
  plan->band_rows = rows;
  if (l.image_rows * l.pitch <= std::max(budget, tile)) {
    plan->images =
        std::clamp<int64_t>(std::max(budget, tile) / (l.image_rows * l.pitch), 1, kMaxImages);
  } else {
    const int64_t wanted = std::max(budget / l.pitch - l.halo_rows, ceil_div(tile, l.pitch));
    plan->band_rows = ceil_div(rows, ceil_div(rows, std::clamp<int64_t>(wanted, 1, rows)));
  }
  plan->bands = ceil_div(rows, plan->band_rows);
  const int64_t stored =
      ((plan->images - 1) * l.image_rows + plan->band_rows + l.halo_rows) * l.pitch +
      horizontal.tail;
  // An odd number of 64-byte lines, so that the channels of a tile do not fall on the same cache
  // sets.
  l.plane = (ceil_div(stored, 16) | 1) * 16;
}

void choose_blocks(int64_t nnz, int element_size, GatherPlan* plan) {
  const PackLayout& l = plan->source;
  const int64_t tile = tile_elements(element_size) + l.halo_rows * l.pitch;
  const int64_t per_channel = tile * element_size * static_cast<int64_t>(l.phases.size());
  const int64_t block =
      std::clamp<int64_t>(kL1Bytes / per_channel, 8, l.channels < 8 ? 8 : l.channels);
  const int64_t rows = plan->destination_channels * plan->tables;
  const int64_t most = std::max<int64_t>(1, nnz / (rows * kMinSegment));
  plan->blocks = std::clamp<int64_t>(ceil_div(l.channels, block), 1, most);
  plan->channel_block = ceil_div(l.channels, plan->blocks);
  plan->blocks = ceil_div(l.channels, plan->channel_block);
}

Status check_offsets(const PackLayout& l, const CsrPattern& pattern) {
  if (l.elements() > std::numeric_limits<int32_t>::max())
    return Status::error("convolution too large: its packed input has " +
                         std::to_string(l.elements()) + " elements, the limit is 2^31 - 1");
  if (pattern.crow_indices[0] != 0 || pattern.crow_indices[pattern.rows] != pattern.nnz)
    return Status::error("crow_indices must start at 0 and end at nnz = " +
                         std::to_string(pattern.nnz));
  return Status::ok();
}

// Where a tap of the kernel lands: its class's table, and its offset within the packed channel.
struct TapTarget {
  int64_t table, offset;
};

std::vector<TapTarget> tap_targets(const Pass& pass, const GatherPlan& plan) {
  std::vector<TapTarget> targets;
  const PackLayout& l = plan.source;
  for (const Tap& row : pass.rows) {
    for (const Tap& col : pass.cols) {
      int64_t phase = 0, target = 0;  // the class, in grad-input
      if (pass.sign > 0) {
        while (l.phases[phase].row != row.residue || l.phases[phase].col != col.residue) ++phase;
      } else {
        const auto& classes = plan.classes;
        while (classes[target].row0 != row.residue || classes[target].col0 != col.residue) ++target;
      }
      const int64_t shift = (pass.sign * row.quotient - l.first_row) * l.pitch +
                            pass.sign * col.quotient - l.first_col;
      targets.push_back({plan.classes[target].table, phase * l.plane + shift});
    }
  }
  return targets;
}

// Calls visit(row, channel within the group, tap, position) for every non-zero, rows in order; a
// column outside the row or a crow_indices that runs backwards ends it with an error.
template <typename Visit>
Status for_each_nonzero(const ConvShape& s, const CsrPattern& pattern, Visit visit) {
  const int32_t length = static_cast<int32_t>(s.row_length()),
                taps = static_cast<int32_t>(s.taps());
  for (int64_t o = 0; o < pattern.rows; ++o) {
    const int32_t begin = pattern.crow_indices[o], end = pattern.crow_indices[o + 1];
    if (end < begin || end > pattern.nnz)
      return Status::error("crow_indices decreases at row " + std::to_string(o));
    int32_t previous = -1;
    for (int32_t k = begin; k < end; ++k) {
      const int32_t col = pattern.col_indices[k];
      if (col <= previous || col >= length)
        return Status::error("col_indices of row " + std::to_string(o) +
                             " must ascend strictly within [0, " + std::to_string(length) +
                             "), got " + std::to_string(col) + " after " +
                             std::to_string(previous));
      previous = col;
      visit(o, col / taps, col % taps, k);
    }
  }
  return Status::ok();
}

}  // namespace

int64_t GatherPlan::bytes() const {
  return static_cast<int64_t>(sizeof(int32_t) *
                              (offsets.size() + value_index.size() + segment_begin.size()));
}

Status make_forward_plan(const ConvShape& s, const CsrPattern& pattern, int element_size,
                         GatherPlan* plan) {
  const Pass pass{axis_taps(s.kernel_h, s.stride_h, s.pad_h, s.dilation_h),
                  axis_taps(s.kernel_w, s.stride_w, s.pad_w, s.dilation_w),
                  +1,
                  s.in_channels,
                  s.height,
                  s.width,
                  s.out_channels,
                  s.out_height,
                  s.out_width};
  plan->destination_channels = s.out_channels;
  lay_out(s, pass, element_size, plan);
  choose_blocks(pattern.nnz, element_size, plan);
  Status status = check_offsets(plan->source, pattern);
  if (!status.is_ok()) return status;

  const std::vector<TapTarget> targets = tap_targets(pass, *plan);
  const int64_t group_in = s.in_channels / s.groups, group_out = s.out_channels / s.groups;
  const int64_t stride = plan->source.channel_stride();
  plan->offsets.resize(pattern.nnz);
  plan->segment_begin.assign((plan->blocks + 1) * s.out_channels, 0);
  status = for_each_nonzero(s, pattern, [&](int64_t o, int32_t i, int32_t tap, int32_t k) {
    const int64_t channel = o / group_out * group_in + i;
    plan->offsets[k] = static_cast<int32_t>(channel * stride + targets[tap].offset);
    ++plan->segment_begin[(channel / plan->channel_block + 1) * s.out_channels + o];
  });
  if (!status.is_ok()) return status;
  for (int64_t o = 0; o < s.out_channels; ++o) plan->segment_begin[o] = pattern.crow_indices[o];
  for (int64_t i = s.out_channels; i < static_cast<int64_t>(plan->segment_begin.size()); ++i)
    plan->segment_begin[i] += plan->segment_begin[i - s.out_channels];
  return Status::ok();
}

Status make_grad_input_plan(const ConvShape& s, const CsrPattern& pattern, int element_size,
                            GatherPlan* plan) {
  const Pass pass{axis_taps(s.kernel_h, s.stride_h, s.pad_h, s.dilation_h),
                  axis_taps(s.kernel_w, s.stride_w, s.pad_w, s.dilation_w),
                  -1,
                  s.out_channels,
                  s.out_height,
                  s.out_width,
                  s.in_channels,
                  s.height,
                  s.width};
  plan->destination_channels = s.in_channels;
  lay_out(s, pass, element_size, plan);
  choose_blocks(pattern.nnz, element_size, plan);
  Status status = check_offsets(plan->source, pattern);
  if (!status.is_ok()) return status;

  // A counting sort by (table, channel, block); rows arrive in order, so blocks fill in order.
  const std::vector<TapTarget> targets = tap_targets(pass, *plan);
  const int64_t group_in = s.in_channels / s.groups, group_out = s.out_channels / s.groups;
  const int64_t channels = s.in_channels, blocks = plan->blocks;
  const auto slot = [&](int64_t o, int32_t i, int32_t tap, int64_t block) {
    return (targets[tap].table * (blocks + 1) + block) * channels + o / group_out * group_in + i;
  };
  std::vector<int32_t>& begin = plan->segment_begin;
  begin.assign(plan->tables * (blocks + 1) * channels, 0);
  status = for_each_nonzero(s, pattern, [&](int64_t o, int32_t i, int32_t tap, int32_t) {
    ++begin[slot(o, i, tap, o / plan->channel_block + 1)];
  });
  if (!status.is_ok()) return status;
  int32_t total = 0;
  for (int64_t k = 0; k < plan->tables; ++k) {
    for (int64_t c = 0; c < channels; ++c) {
      int32_t* column = &begin[k * (blocks + 1) * channels + c];
      column[0] = total;
      for (int64_t b = 1; b <= blocks; ++b)
        total = column[b * channels] += column[(b - 1) * channels];
    }
  }
  std::vector<int32_t> cursor(begin);
  plan->offsets.resize(pattern.nnz);
  plan->value_index.resize(pattern.nnz);
  return for_each_nonzero(s, pattern, [&](int64_t o, int32_t i, int32_t tap, int32_t k) {
    const int32_t at = cursor[slot(o, i, tap, o / plan->channel_block)]++;
    plan->offsets[at] =
        static_cast<int32_t>(o * plan->source.channel_stride() + targets[tap].offset);
    plan->value_index[at] = k;
  });
}

}  // namespace dsr::cpu
