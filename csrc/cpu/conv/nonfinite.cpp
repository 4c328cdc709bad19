#include "cpu/conv/nonfinite.h"

#include <omp.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <type_traits>

#include "cpu/conv/elements.h"

namespace dsr::cpu {
namespace {

// A non-zero as a plan has it. Destination pixel (p, q) of a class reads pixel (p + row, q + col)
// of a phase of the source, if that has it.
struct Entry {
  const DestinationClass* target;
  const PackLayout::Phase* phase;
  int64_t destination, source;  // channels
  int64_t row, col;
  int64_t value;  // in the pattern's order
};

// The source channel, phase, row and column that an offset leads to. `shift` is its frame's (kRow).
// Where two pairs of rows and columns have the same offset, both are margins of all destinations.
Entry entry_at(const GatherPlan& plan, const DestinationClass& target, int64_t offset,
               int64_t shift) {
  const PackLayout& l = plan.source;
  const int64_t at = offset / plan.batch.lane_images, within = at % l.channel_stride();
  const int64_t in_plane = within % l.plane;
  const int64_t col = plan.lanes == Lanes::kRow ? shift : l.first_col + in_plane % l.pitch;
  return {.target = &target,
          .phase = &l.phases[within / l.plane],
          .destination = 0,
          .source = at / l.channel_stride(),
          .row = l.first_row + in_plane / l.pitch,
          .col = col,
          .value = 0};
}

// Steps that are ordered by destination channels.
template <typename Visit>
void visit_segments(const GatherPlan& plan, const DestinationClass& target, Visit visit) {
  const Table& table = plan.tables[target.table];
  for (int64_t b = 0; b < plan.block.count; ++b) {
    for (int64_t d = 0; d < plan.destination.channels; d += plan.block_rows) {
      const int32_t* bounds = plan.segments(target.table, b, d);
      for (int64_t f = 0; f < table.frames(); ++f) {
        for (int32_t k = bounds[f]; k < bounds[f + 1]; ++k) {
          Entry entry = entry_at(plan, target, plan.offsets[k], table.shifts[f]);
          for (int64_t r = 0; r < plan.block_rows; ++r) {
            entry.destination = d + r;
            entry.value = plan.value_index[k * plan.block_rows + r];
            visit(entry);
          }
        }
      }
    }
  }
}

// Steps that are ordered by groups of source channels (grad-input of blocks).
template <typename Visit>
void visit_groups(const GatherPlan& plan, const DestinationClass& target, Visit visit) {
  const bool matrix = plan.lanes == Lanes::kMatrix;
  const Table& table = plan.tables[target.table];
  // A matrix unit's groups count rows of weights: which step has which row is sorted out first.
  std::vector<std::vector<int32_t>> of_row(matrix ? plan.row_targets.size() : 0);
  for (int32_t k = 0; matrix && k < static_cast<int32_t>(plan.offsets.size()); ++k)
    of_row[plan.offsets[k] / 2].push_back(k);
  const auto visit_step = [&](Entry entry, int64_t base, int64_t destination, int32_t k) {
    entry.destination = destination;
    for (int64_t r = 0; r < plan.block_rows; ++r) {
      entry.source = base + r;
      entry.value = plan.value_index[k * plan.block_rows + r];
      visit(entry);
    }
  };
  for (int64_t d = 0; d < plan.destination.channels; d += plan.strip.channels) {
    const int32_t* range = plan.groups_of(target.table, d);
    for (int32_t g = range[0]; g < range[1]; ++g) {
      const GatherPlan::Group &group = plan.groups[g], &next = plan.groups[g + 1];
      // Pixels of paired channels lie two apart.
      const int64_t block = plan.source.channel_stride() * kMatrixDepth;
      const int64_t offset = matrix ? group.offset % block / 2 : group.offset;
      const Entry entry = entry_at(plan, target, offset, table.shifts[group.frame]);
      const int64_t base = matrix ? group.offset / block * kMatrixDepth : entry.source;
      for (int32_t at = group.begin; at < next.begin; ++at) {
        if (!matrix) {
          visit_step(entry, base, d + plan.offsets[at], at);
          continue;
        }
        for (const int32_t k : of_row[at])
          visit_step(entry, base + plan.offsets[k] % 2 * kMatrixRows, d + plan.row_targets[at], k);
      }
    }
  }
}

// The non-zeros whose value in `values` is not finite.
template <typename S>
std::vector<Entry> nonfinite_entries(const GatherPlan& plan, const S* values) {
  std::vector<Entry> found;
  const auto visit = [&](const Entry& entry) {
    if (!std::isfinite(values[entry.value])) found.push_back(entry);
  };
  for (const DestinationClass& target : plan.destination.classes) {
    if (target.table < 0) continue;
    plan.has_groups() ? visit_groups(plan, target, visit) : visit_segments(plan, target, visit);
  }
  return found;
}

// An element of channel c, as the pack steps compute it.
template <typename S>
S read(const Operand<S>& operand, int64_t c, int64_t at) {
  const ChannelAffine<S>& by = operand.affine;
  const auto affine = [&](S x) {
    if (by.is_identity()) return x;
    return (x - (by.center ? by.center[c] : S{0})) * by.scale[c] + by.shift[c];
  };
  const S x = load_element<S>(operand.data, operand.element, at);
  if (operand.other) return x + affine(load_element<S>(operand.other, operand.element, at));
  const S z = affine(x);
  return operand.relu && z < 0 ? S{0} : z;
}

// The destination pixels of a class [first, end) whose pixel of the source exists, along one axis.
struct Range {
  int64_t first, end;
};
Range reached(int64_t destination, int64_t shift, int64_t source) {
  return {std::max<int64_t>(0, -shift), std::min(destination, source - shift)};
}

// Calls visit(pixel of the destination, pixel of the source) with places in image n, until false.
template <typename Visit>
void visit_pixels(const GatherPlan& plan, const Entry& e, const Strides4& to, const Strides4& from,
                  int64_t n, Visit visit) {
  const PackLayout& l = plan.source;
  const Range rows = reached(e.target->rows, e.row, e.phase->height);
  const Range cols = reached(e.target->cols, e.col, e.phase->width);
  for (int64_t p = rows.first; p < rows.end; ++p) {
    const int64_t to_row = e.target->row0 + plan.destination.step_h * p;
    const int64_t from_row = e.phase->row + l.step_h * (p + e.row);
    for (int64_t q = cols.first; q < cols.end; ++q) {
      const int64_t to_col = e.target->col0 + plan.destination.step_w * q;
      const int64_t from_col = e.phase->col + l.step_w * (q + e.col);
      if (!visit(n * to.n + e.destination * to.c + to_row * to.h + to_col * to.w,
                 n * from.n + e.source * from.c + from_row * from.h + from_col * from.w))
        return;
    }
  }
}

}  // namespace

template <typename S>
bool all_finite(const S* values, int64_t count) {
  // By integers, for which the compiler finds vectors: this is done in every call.
  using Bits = std::conditional_t<sizeof(S) == 4, uint32_t, uint64_t>;
  constexpr Bits kExponent = static_cast<Bits>(sizeof(S) == 4 ? 0x7f800000u : 0x7ff0000000000000u);
  Bits found = 0;
  for (int64_t k = 0; k < count; ++k) {
    Bits bits;
    std::memcpy(&bits, values + k, sizeof(bits));
    found |= static_cast<Bits>((bits & kExponent) == kExponent);
  }
  return found == 0;
}

template <typename S>
std::vector<S> finite_part(const S* values, int64_t count) {
  std::vector<S> finite(values, values + count);
  for (S& value : finite)
    if (!std::isfinite(value)) value = 0;
  return finite;
}

template <typename S>
void add_nonfinite(const GatherArgs<S>& args, const S* values) {
  const GatherPlan& plan = *args.plan;
  const std::vector<Entry> entries = nonfinite_entries(plan, values);
#pragma omp parallel for num_threads(args.threads)
  for (int64_t n = 0; n < args.n; ++n) {
    for (const Entry& entry : entries) {
      const auto add = [&](int64_t to, int64_t from) {
        const S sum = load_element<S>(args.destination, args.destination_element, to) +
                      values[entry.value] * read(args.source, entry.source, from);
        store_element(args.destination, args.destination_element, to, sum);
        return true;
      };
      visit_pixels(plan, entry, args.destination_strides, args.source.strides, n, add);
    }
  }
}

template <typename S>
void mend_grad_values(const GradWeightArgs<S>& args) {
  const GatherPlan& plan = *args.plan;
  const std::vector<Entry> entries = nonfinite_entries(plan, args.grad_values);
  const int64_t count = static_cast<int64_t>(entries.size());
#pragma omp parallel for num_threads(args.threads) schedule(dynamic)
  for (int64_t i = 0; i < count; ++i) {
    const Entry& entry = entries[i];
    double sum = 0;
    const auto add = [&](int64_t grad, int64_t x) {
      sum += static_cast<double>(read(args.grad, entry.destination, grad)) *
             static_cast<double>(read(args.x, entry.source, x));
      return sum == sum;  // NaN stays NaN
    };
    for (int64_t n = 0; n < args.n && sum == sum; ++n)
      visit_pixels(plan, entry, args.grad.strides, args.x.strides, n, add);
    args.grad_values[entry.value] = static_cast<S>(sum);
  }
}

#define DSR_INSTANTIATE(S)                                        \
  template bool all_finite<S>(const S*, int64_t);                 \
  template std::vector<S> finite_part<S>(const S*, int64_t);      \
  template void add_nonfinite<S>(const GatherArgs<S>&, const S*); \
  template void mend_grad_values<S>(const GradWeightArgs<S>&);
DSR_INSTANTIATE(float)
DSR_INSTANTIATE(double)

}  // namespace dsr::cpu
