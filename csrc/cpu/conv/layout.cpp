#include "cpu/conv/layout.h"

#include <algorithm>
#include <cstdlib>
#include <limits>
#include <numeric>
#include <string>

#include "cpu/dispatch.h"
#include "cpu/isa/limits.h"

namespace dsr::cpu {
namespace {

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
// `tail` zeros at the end are also the zeros at the start of the next row or image.
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

// Of the taps, ascending.
std::vector<int64_t> residues(const std::vector<Tap>& taps) {
  std::vector<int64_t> found;
  for (const Tap& tap : taps) found.push_back(tap.residue);
  std::sort(found.begin(), found.end());
  found.erase(std::unique(found.begin(), found.end()), found.end());
  return found;
}

// Where along an axis classes begin, ascending: the first `step` pixels of the destination, and the
// residues of taps that lie beyond the last one.
std::vector<int64_t> class_starts(const std::vector<int64_t>& of_taps, int64_t step, int64_t size) {
  std::vector<int64_t> starts(std::min(step, size));
  std::iota(starts.begin(), starts.end(), 0);
  const auto beyond = std::lower_bound(of_taps.begin(), of_taps.end(), size);
  starts.insert(starts.end(), beyond, of_taps.end());
  return starts;
}

bool contains(const std::vector<int64_t>& ascending, int64_t value) {
  return std::binary_search(ascending.begin(), ascending.end(), value);
}

// The classes that have pixels, and those that have taps (and then a table of segments).
void lay_out_classes(const Pass& pass, GatherPlan* plan) {
  GatherPlan::Destination& d = plan->destination;
  const std::vector<int64_t> one = {0};  // the step is 1
  const std::vector<int64_t> rows = pass.sign > 0 ? one : residues(pass.rows),
                             cols = pass.sign > 0 ? one : residues(pass.cols);
  int64_t tables = 0;
  for (const int64_t r : class_starts(rows, d.step_h, d.height)) {
    for (const int64_t c : class_starts(cols, d.step_w, d.width)) {
      const bool has_taps = contains(rows, r) && contains(cols, c);
      if (!has_taps && (r >= d.height || c >= d.width)) continue;
      d.classes.push_back({.row0 = r,
                           .col0 = c,
                           .rows = std::max<int64_t>(0, ceil_div(d.height - r, d.step_h)),
                           .cols = std::max<int64_t>(0, ceil_div(d.width - c, d.step_w)),
                           .table = has_taps ? tables++ : -1});
    }
  }
  plan->tables.assign(tables, {});
}

void lay_out_phases(const Pass& pass, PackLayout* l) {
  const std::vector<int64_t> one = {0};  // the step is 1
  for (const int64_t r : pass.sign > 0 ? residues(pass.rows) : one) {
    for (const int64_t c : pass.sign > 0 ? residues(pass.cols) : one) {
      l->phases.push_back({.row = r,
                           .col = c,
                           .height = std::max<int64_t>(0, ceil_div(pass.source_h - r, l->step_h)),
                           .width = std::max<int64_t>(0, ceil_div(pass.source_w - c, l->step_w))});
    }
  }
}

}  // namespace

Pass forward_pass(const ConvShape& s) {
  return {.rows = axis_taps(s.kernel_h, s.stride_h, s.pad_h, s.dilation_h),
          .cols = axis_taps(s.kernel_w, s.stride_w, s.pad_w, s.dilation_w),
          .sign = +1,
          .stride_h = s.stride_h,
          .stride_w = s.stride_w,
          .source_channels = s.in_channels,
          .source_h = s.height,
          .source_w = s.width,
          .destination_channels = s.out_channels,
          .destination_h = s.out_height,
          .destination_w = s.out_width};
}

Pass grad_input_pass(const ConvShape& s) {
  return {.rows = axis_taps(s.kernel_h, s.stride_h, s.pad_h, s.dilation_h),
          .cols = axis_taps(s.kernel_w, s.stride_w, s.pad_w, s.dilation_w),
          .sign = -1,
          .stride_h = s.stride_h,
          .stride_w = s.stride_w,
          .source_channels = s.out_channels,
          .source_h = s.out_height,
          .source_w = s.out_width,
          .destination_channels = s.in_channels,
          .destination_h = s.height,
          .destination_w = s.width};
}

int64_t slot_lanes(const Pass& pass) {
  const Limits& limits = kernels().limits;
  const int64_t step = pass.stride_w, forward = pass.sign > 0;
  const int64_t widest = std::max(ceil_div(pass.source_w, forward ? step : 1),
                                  ceil_div(pass.destination_w, forward ? 1 : step));
  int64_t low = 0, high = 0, slot = 4;
  for (const Tap& tap : pass.cols) {
    low = std::min(low, tap.quotient);
    high = std::max(high, tap.quotient);
  }
  while (slot < widest) slot *= 2;
  const bool near = high - low <= limits.turn() && high < slot && -low < slot;
  const bool strides = pass.stride_h <= kMaxRowStrideH && step <= kMaxRowStrideW;
  return strides && near && slot <= limits.row_pixels() ? slot : 0;
}

Status lay_out(const Pass& pass, int element_size, GatherPlan* plan) {
  const bool forward = pass.sign > 0;
  plan->source = {.channels = pass.source_channels,
                  .height = pass.source_h,
                  .width = pass.source_w,
                  .step_h = forward ? pass.stride_h : 1,
                  .step_w = forward ? pass.stride_w : 1};
  plan->destination = {.channels = pass.destination_channels,
                       .height = pass.destination_h,
                       .width = pass.destination_w,
                       .step_h = forward ? 1 : pass.stride_h,
                       .step_w = forward ? 1 : pass.stride_w};
  PackLayout& l = plan->source;
  lay_out_phases(pass, &l);
  lay_out_classes(pass, plan);
  // The first class is the largest, the first phase too.
  const DestinationClass& largest = plan->destination.classes[0];
  const Axis vertical = pack_axis(pass.rows, pass.sign, largest.rows, l.phases[0].height);
  const Axis horizontal = pack_axis(pass.cols, pass.sign, largest.cols, l.phases[0].width);
  l.first_row = vertical.first;
  l.halo_rows = vertical.halo;
  l.image_rows = vertical.distance;
  l.first_col = horizontal.first;
  l.halo_cols = horizontal.halo;
  l.pitch = horizontal.distance;
  l.tail = horizontal.tail;
  if (plan->lanes != Lanes::kRow) return Status::ok();
  plan->row.slot_lanes = slot_lanes(pass);
  if (plan->row.slot_lanes == 0 || element_size != 4) {
    const Limits& limits = kernels().limits;
    return Status::error("lanes 'row': need float32, rows of at most " +
                         std::to_string(limits.row_pixels()) + " pixels, strides of at most (" +
                         std::to_string(kMaxRowStrideH) + ", " + std::to_string(kMaxRowStrideW) +
                         ") and taps no further apart than " + std::to_string(limits.turn()) +
                         " columns");
  }
  l.first_col = l.halo_cols = l.tail = 0;  // the pitch is the tiling's
  return Status::ok();
}

std::pair<int64_t, int64_t> long_rows(int64_t pixels) {
  constexpr int64_t kBest = 14;  // vectors
  if (pixels % kMaxLanes != 0) return {1, pixels};
  const int64_t vectors = pixels / kMaxLanes;
  int64_t best = 1;  // the divisor closest to kBest, of two the smaller
  for (int64_t d = 2; d <= std::min(vectors, 2 * kBest); ++d)
    if (vectors % d == 0 && std::abs(d - kBest) < std::abs(best - kBest)) best = d;
  return {vectors / best, best * kMaxLanes};
}

}  // namespace dsr::cpu
