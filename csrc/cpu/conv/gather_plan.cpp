#include "cpu/conv/gather_plan.h"

#include <algorithm>
#include <limits>

#include "cpu/conv/extents.h"
#include "cpu/conv/layout.h"
#include "cpu/conv/matrix_plan.h"
#include "cpu/conv/tiling.h"
#include "cpu/dispatch.h"
#include "cpu/isa/limits.h"

namespace dsr::cpu {
namespace {

// Where a tap of the kernel lands: its class's table, its frame there (kRow), and its offset within
// the packed channel, in scalars.
struct TapTarget {
  int64_t table, frame, offset;
};

// Adds the shift to the table's, in order.
void note_shift(int64_t shift, Table* table) {
  const auto at = std::lower_bound(table->shifts.begin(), table->shifts.end(), shift);
  if (at == table->shifts.end() || *at != shift) table->shifts.insert(at, shift);
}

// Which of `all`, ordered by their first rows and columns, begins at the residues of a tap.
template <typename Part>
int64_t place_of(const std::vector<Part>& all, int64_t Part::* row, int64_t Part::* col,
                 const Tap& tap_row, const Tap& tap_col) {
  const std::pair wanted{tap_row.residue, tap_col.residue};
  const auto is_before = [&](const Part& part, const auto& tap) {
    return std::pair{part.*row, part.*col} < tap;
  };
  return std::lower_bound(all.begin(), all.end(), wanted, is_before) - all.begin();
}

std::vector<TapTarget> tap_targets(const Pass& pass, GatherPlan* plan) {
  std::vector<TapTarget> targets;
  const PackLayout& l = plan->source;
  const bool rotates = plan->lanes == Lanes::kRow;
  for (const Tap& row : pass.rows) {
    for (const Tap& col : pass.cols) {
      int64_t phase = 0, target = 0;  // the class, in grad-input
      if (pass.sign > 0) {
        phase = place_of(l.phases, &PackLayout::Phase::row, &PackLayout::Phase::col, row, col);
      } else {
        target = place_of(plan->destination.classes, &DestinationClass::row0,
                          &DestinationClass::col0, row, col);
      }
      const int64_t table = plan->destination.classes[target].table,
                    shift = pass.sign * col.quotient;
      const int64_t down = (pass.sign * row.quotient - l.first_row) * l.pitch;
      const int64_t across = rotates ? 0 : shift - l.first_col;
      targets.push_back({table, rotates ? shift : 0,
                         (phase * l.plane + down + across) * plan->batch.lane_images});
      note_shift(targets.back().frame, &plan->tables[table]);
    }
  }
  for (TapTarget& t : targets) {  // from the shift to where it stands among the table's
    const auto& shifts = plan->tables[t.table].shifts;
    t.frame = std::lower_bound(shifts.begin(), shifts.end(), t.frame) - shifts.begin();
  }
  return targets;
}

// Calls visit(first row, channel within the group, tap, index of the first value) for every
// `rows` non-zeros of one position, rows in order; a column outside the row or a crow_indices that
// runs backwards ends it with an error. `rows` divides the block size, and values of one position
// lie side by side.
template <typename Visit>
Status for_each_step(const ConvShape& s, const BsrPattern& pattern, int64_t rows, Visit visit) {
  const int32_t length = static_cast<int32_t>(s.row_length()),
                taps = static_cast<int32_t>(s.taps());
  const int64_t size = pattern.block_size;
  for (int64_t o = 0; o < pattern.rows; o += rows) {
    const int64_t row = o / size, within = o % size;
    const int32_t begin = pattern.crow_indices[row], end = pattern.crow_indices[row + 1];
    if (end < begin || end > pattern.blocks)
      return Status::error("crow_indices decreases at row " + std::to_string(row));
    int32_t previous = -1;
    for (int32_t k = begin; k < end; ++k) {
      const int32_t col = pattern.col_indices[k];
      if (col <= previous || col >= length)
        return Status::error("col_indices of row " + std::to_string(row) +
                             " must ascend strictly within [0, " + std::to_string(length) +
                             "), got " + std::to_string(col) + " after " +
                             std::to_string(previous));
      previous = col;
      visit(o, col / taps, col % taps, static_cast<int32_t>(k * size + within));
    }
  }
  return Status::ok();
}

// A counting sort of the steps into slots, which begin at `starts` [slots]. Of a step by its first
// output channel, its input channel (of all groups) and its tap, slot(o, in, tap) says where it
// belongs and offset(o, in, tap) what the plan notes of it.
template <typename Slot, typename Offset>
Status sort_steps(const ConvShape& s, const BsrPattern& pattern, int64_t slots, GatherPlan* plan,
                  std::vector<int32_t>* starts, Slot slot, Offset offset) {
  const int64_t group_in = s.in_channels / s.groups, group_out = s.out_channels / s.groups;
  const int64_t rows = plan->block_rows;
  const auto input = [&](int64_t o, int32_t i) { return o / group_out * group_in + i; };
  // The slot behind a block's last one counts nothing and so ends it.
  std::vector<int32_t> cursor(slots + 1, 0);
  Status status = for_each_step(s, pattern, rows, [&](int64_t o, int32_t i, int32_t tap, int32_t) {
    ++cursor[slot(o, input(o, i), tap) + 1];
  });
  if (!status.is_ok()) return status;
  for (int64_t at = 1; at <= slots; ++at) cursor[at] += cursor[at - 1];
  starts->assign(cursor.begin(), cursor.end() - 1);
  plan->offsets.resize(pattern.nnz() / rows);
  plan->value_index.resize(pattern.nnz());
  return for_each_step(s, pattern, rows, [&](int64_t o, int32_t i, int32_t tap, int32_t value) {
    const int64_t in = input(o, i);
    const int32_t at = cursor[slot(o, in, tap)]++;
    plan->offsets[at] = static_cast<int32_t>(offset(o, in, tap));
    for (int64_t r = 0; r < rows; ++r)
      plan->value_index[at * rows + r] = static_cast<int32_t>(value + r);
  });
}

// By table, block, destination channels and frame. In forward a row of the pattern is a destination
// channel, in grad-input a source channel.
Status order_by_destination(const ConvShape& s, const BsrPattern& pattern, const Pass& pass,
                            GatherPlan* plan) {
  const bool forward = pass.sign > 0;
  const std::vector<TapTarget> targets = tap_targets(pass, plan);
  const int64_t stride = plan->source.channel_stride() * plan->batch.lane_images;
  int64_t total = 0;
  for (Table& table : plan->tables) {
    table.begin = total;
    total += plan->block.count * (plan->rows() * table.frames() + 1);
  }
  plan->no_bounds.assign(plan->destination.channels + 1, 0);
  const auto slot = [&](int64_t o, int64_t in, int32_t tap) {
    const Table& table = plan->tables[targets[tap].table];
    return table.begin +
           (forward ? in : o) / plan->block.channels * (plan->rows() * table.frames() + 1) +
           (forward ? o / plan->block_rows : in) * table.frames() + targets[tap].frame;
  };
  const auto offset = [&](int64_t o, int64_t in, int32_t tap) {
    return (forward ? in : o) * stride + targets[tap].offset;
  };
  return sort_steps(s, pattern, total, plan, &plan->bounds, slot, offset);
}

// Where the groups of one strip come: frame by frame, and in each by source channels.
struct GroupOrder {
  struct Place {
    int32_t block, tap;
  };
  std::vector<Place> places;
  std::vector<int32_t> of;  // [blocks * taps] the place of a block of channels at a tap
};

GroupOrder group_order(const std::vector<TapTarget>& targets, int64_t blocks) {
  const int32_t taps = static_cast<int32_t>(targets.size());
  GroupOrder order;
  order.of.resize(blocks * taps);
  int64_t last_frame = 0;
  for (const TapTarget& target : targets) last_frame = std::max(last_frame, target.frame);
  for (int64_t frame = 0; frame <= last_frame; ++frame) {
    for (int32_t block = 0; block < blocks; ++block) {
      for (int32_t tap = 0; tap < taps; ++tap) {
        if (targets[tap].frame != frame) continue;
        order.of[block * taps + tap] = static_cast<int32_t>(order.places.size());
        order.places.push_back({block, tap});
      }
    }
  }
  return order;
}

// Grad-input in groups: by table, strip, group and destination channel. A group is `block_rows`
// source channels at one tap; on a matrix unit kMatrixDepth of them, in pairs.
Status order_by_group(const ConvShape& s, const BsrPattern& pattern, const Pass& pass,
                      GatherPlan* plan) {
  const std::vector<TapTarget> targets = tap_targets(pass, plan);
  const bool matrix = plan->lanes == Lanes::kMatrix;
  const int64_t taps = static_cast<int64_t>(targets.size()), rows = plan->block_rows;
  const int64_t span = matrix ? kMatrixDepth : rows;
  const int64_t strip = plan->strip.channels, channels = plan->destination.channels;
  const int64_t strips = ceil_div(channels, strip);
  const int64_t tables = static_cast<int64_t>(plan->tables.size());
  const int64_t places = saturating_product({tables, strips, ceil_div(s.out_channels, span), taps});
  if (places > std::numeric_limits<int32_t>::max())
    return Status::error("convolution too large: grad-input takes " + std::to_string(places) +
                         " groups of weights, the limit is 2^31 - 1");
  const GroupOrder order = group_order(targets, ceil_div(s.out_channels, span));
  const int64_t of_strip = static_cast<int64_t>(order.places.size());
  const int64_t slots = tables * strips * of_strip;
  const auto slot = [&](int64_t o, int64_t in, int32_t tap) {
    return (targets[tap].table * strips + in / strip) * of_strip + order.of[o / span * taps + tap];
  };
  const auto within = [&](int64_t o, int64_t in, int32_t) {
    return matrix ? in % strip * (span / rows) + o % span / rows : in % strip;
  };
  std::vector<int32_t> starts;  // and the number of steps
  const Status status = sort_steps(s, pattern, slots + 1, plan, &starts, slot, within);
  if (!status.is_ok()) return status;
  const int64_t stride = plan->source.channel_stride() * plan->batch.lane_images * span;
  const int64_t pixel = matrix ? 2 : 1;
  const auto note_group = [&](const GroupOrder::Place& place, int64_t at) {
    if (starts[at] == starts[at + 1]) return;
    const TapTarget& target = targets[place.tap];
    plan->groups.push_back({static_cast<int32_t>(place.block * stride + target.offset * pixel),
                            static_cast<int32_t>(target.frame), starts[at], 0, 0, 0});
  };
  const auto note_bound = [&] {
    plan->bounds.push_back(static_cast<int32_t>(plan->groups.size()));
  };
  int64_t at = 0;
  for (int64_t table = 0; table < tables; ++table) {
    for (int64_t of = 0; of < strips; ++of) {
      note_bound();
      for (const GroupOrder::Place& place : order.places) note_group(place, at++);
    }
    note_bound();
  }
  plan->groups.push_back({0, 0, starts[slots], 0, 0, 0});
  return status;
}

// Rows that the inner loops take at once. A group of grad-input must serve enough steps to be worth
// its loads: as many as the input channels that have a block at one tap.
int64_t block_rows_of(const ConvShape& s, const BsrPattern& pattern, Direction direction,
                      const GatherPlan& plan) {
  if (plan.lanes == Lanes::kMatrix) return kMatrixRows;
  constexpr int64_t kFewestSteps = 8;
  const Limits& limits = kernels().limits;
  const bool fits =
      plan.row.slot_lanes <= limits.block_vectors * limits.lanes(sizeof(float));  // kRow
  if (pattern.block_size % kBlockRows != 0 || !fits) return 1;
  const int64_t groups = pattern.rows / pattern.block_size * s.taps();
  const bool worthwhile = pattern.blocks >= kFewestSteps * groups;
  return direction == Direction::kForward || worthwhile ? kBlockRows : 1;
}

}  // namespace

int64_t GatherPlan::bytes() const {
  return static_cast<int64_t>(sizeof(int32_t) *
                                  (offsets.size() + value_index.size() + bounds.size() +
                                   no_bounds.size() + first_tiles.size() + row_targets.size()) +
                              sizeof(Group) * groups.size() + sizeof(Table) * tables.size() +
                              sizeof(PackLayout::Phase) * source.phases.size() +
                              sizeof(DestinationClass) * destination.classes.size());
}

Status make_gather_plan(const ConvShape& shape, const BsrPattern& pattern, int element_size,
                        Lanes lanes, Direction direction, GatherPlan* plan) {
  const Pass pass = direction == Direction::kForward ? forward_pass(shape) : grad_input_pass(shape);
  plan->lanes = lanes;
  plan->matrix_unit = kernels().limits.matrix_unit;
  Status status = check_pattern(shape, pattern);
  if (status.is_ok() && lanes == Lanes::kMatrix &&
      (element_size != 4 || !fits_matrix_unit(pattern.block_size)))
    return Status::error(
        "lanes 'matrix': need float32 and blocks of 16 output channels or of a "
        "multiple, got blocks of " +
        std::to_string(pattern.block_size));
  if (status.is_ok()) status = lay_out(pass, element_size, plan);
  if (status.is_ok()) status = check_volume(*plan);
  if (!status.is_ok()) return status;
  plan->block_rows = block_rows_of(shape, pattern, direction, *plan);
  choose_tiling(pattern.nnz() / plan->block_rows, pass, element_size, plan);
  status = check_offsets(*plan, pattern);
  if (!status.is_ok()) return status;
  if (direction == Direction::kGradInput && plan->block_rows > 1) {
    status = order_by_group(shape, pattern, pass, plan);
    if (status.is_ok() && lanes == Lanes::kMatrix) place_group_rows(plan);
    return status;
  }
  status = order_by_destination(shape, pattern, pass, plan);
  if (status.is_ok() && lanes == Lanes::kMatrix) place_weight_tiles(plan);
  return status;
}

}  // namespace dsr::cpu
