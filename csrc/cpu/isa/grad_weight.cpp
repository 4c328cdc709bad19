// Grad-weight at the non-zeros only: grad_values[k] = sum over m of grad[row(k), m] *
// packed[offset(k) + m].
//
// A tile of the packed gradient stays in registers while the non-zeros of its row stream past. Each
// leaves one vector of partial sums; a full set of them is reduced at once.
// kPlane, kRow, kMatrix: lanes on the margin, or that a turn wraps around, multiply a zero gradient
// with whatever the packed source holds there. Where that is infinite or NaN, the sums come out NaN
// and are computed anew (cpu/conv/nonfinite.h).
// The batch is summed in a fixed number of slices, added up in order: no atomics, and the same
// result for any number of threads.
#include "cpu/isa/ahead.h"
#include "cpu/isa/dot_products.h"
#include "cpu/isa/entry.h"
#include "cpu/isa/flush_subnormals.h"
#include "cpu/isa/grad_block.h"
#include "cpu/isa/grad_matrix.h"
#include "cpu/isa/grad_tile.h"
#include "cpu/isa/pack.h"

namespace dsr::cpu::DSR_ISA {
namespace {

// The inner loops for every size of a tile: accumulate_grad_tile and accumulate_row_grad_tile in
// grad_tile.h.
template <typename S>
constexpr auto kTiles =
    TileTable<GradTileFunction<S>,
              kLimits.grad_tile_vectors>::template of<GradTiles<S>::template Kernel>();
constexpr auto kRowTiles =
    RowTileTable<RowGradTileFunction, kLimits.row_tile_vectors>::of<RowGradTiles::Kernel>();

template <typename S>
class GradWeight {
 public:
  GradWeight(const GradWeightArgs<S>& args, char* workspace)
      : args_(args), plan_(*args.plan), grad_layout_(*args.grad_layout) {
    packed_ =
        reinterpret_cast<S*>(cut_part(&workspace, packed_bytes(plan_, plan_.source, sizeof(S))));
    packed_grad_ =
        reinterpret_cast<S*>(cut_part(&workspace, packed_bytes(plan_, grad_layout_, sizeof(S))));
    map_memory_ = cut_part(&workspace, pixel_map_bytes(plan_, plan_.source));
    grad_map_memory_ = cut_part(&workspace, pixel_map_bytes(plan_, grad_layout_));
    if (plan_.lanes != Lanes::kRow) return;
    const Table& table = plan_.tables[0];
    make_walk(table, plan_.row.slot_lanes, true, &walk_);
    for (int f = 0; f < walk_.frames; ++f)
      shifts_[f] = make_turn(plan_.row.slot_lanes, table.shifts[f]);
  }

  // Adds the share of one unit to the sums of output channels [first, last).
  // `next` is the unit after this one, to be fetched ahead, or null.
  void run(const Unit& unit, const Unit* next, int64_t first, int64_t last, S* sums) {
    look_ahead(next);
    pack(args_.x, plan_, plan_.source, unit, map_memory_, packed_);
    if (grad_needs_no_packing()) {
      const Strides4& s = args_.grad.strides;
      grad_ = static_cast<const S*>(args_.grad.data) + unit.image * s.n + unit.row * s.h;
      grad_channel_ = s.c;
    } else {
      pack(args_.grad, plan_, grad_layout_, unit, grad_map_memory_, packed_grad_);
      grad_ = packed_grad_;
      grad_channel_ = grad_layout_.plane * plan_.batch.lane_images;
    }
    if (plan_.block_rows > 1) return blocks(unit, first, last, sums);
    if (plan_.lanes != Lanes::kPlane) {
      const int64_t down = ceil_div(unit.rows, plan_.tile.rows);
      const int64_t most_cols = least(plan_.tile.cols, kLimits.grad_tile_vectors / plan_.tile.rows);
      for (int64_t i = 0; i < down; ++i) {
        const int64_t row = boundary(unit.rows, i, down),
                      rows = boundary(unit.rows, i + 1, down) - row;
        if (plan_.lanes == Lanes::kRow) {
          row_tile(row, rows, first, last, sums);
        } else {
          tiles_across(row, rows, plan_.destination.classes[0].cols, most_cols, first, last, sums);
        }
      }
    } else {
      const int64_t elements =
          ((unit.images - 1) * plan_.source.image_rows + unit.rows - 1) * plan_.source.pitch +
          plan_.destination.classes[0].cols;
      const int64_t vectors = ceil_div(elements, kLanes<S>);
      tiles_across(0, 1, vectors, least(plan_.tile.cols, kLimits.grad_tile_vectors), first, last,
                   sums);
    }
  }

 private:
  // Rows of one image that are whole vectors, one after the other, are read where they are.
  bool grad_needs_no_packing() const {
    const Strides4& s = args_.grad.strides;
    const int64_t width = grad_layout_.width;
    return args_.grad.is_plain() && args_.grad.element != Element::kBFloat16 &&
           plan_.lanes != Lanes::kBatch && plan_.unit.images == 1 && s.w == 1 && s.h == width &&
           grad_layout_.pitch == width && width % kLanes<S> == 0;
  }

  void look_ahead(const Unit* next) {
    ahead_ = ahead_grad_ = Ahead();
    if (!next) return;
    const int64_t steps = tiles_of_a_unit(plan_, kLanes<S>) * plan_.block.count * plan_.rows();
    ahead_ = Ahead(args_.x, plan_.source, *next, steps);
    ahead_grad_ = Ahead(args_.grad, grad_layout_, *next, steps);
  }

  // A unit whose output channels are taken block by block.
  void blocks(const Unit& unit, int64_t first, int64_t last, S* sums) {
    const int64_t scalars = plan_.batch.lane_images;
    const bool plane = plan_.lanes == Lanes::kPlane;
    const int64_t cols = plan_.destination.classes[0].cols;
    const int64_t elements =
        ((unit.images - 1) * plan_.source.image_rows + unit.rows - 1) * plan_.source.pitch + cols;
    const int64_t rows = plane ? 1 : unit.rows;
    const int64_t vectors = plane                        ? ceil_div(elements, kLanes<S>)
                            : plan_.lanes == Lanes::kRow ? plan_.row.vectors
                                                         : cols;
    const int64_t most_cols = least(vectors, kGradBlockVectors);
    const int64_t most_rows = most(1, kGradBlockVectors / most_cols);
    const int64_t down = ceil_div(rows, most_rows), across = ceil_div(vectors, most_cols);
    const auto accumulate = grad_block<S>(plan_);
    for (int64_t t = 0; t < down * across; ++t) {
      const int64_t row = boundary(rows, t / across, down),
                    col = boundary(vectors, t % across, across);
      for (int64_t b = 0; b < plan_.block.count; ++b)
        accumulate({.packed = packed_ + row * plan_.source.pitch * scalars + col * kLanes<S>,
                    .packed_row = plan_.source.pitch * scalars,
                    .grad = grad_ + first * grad_channel_ + row * grad_layout_.pitch * scalars +
                            col * kLanes<S>,
                    .grad_channel = grad_channel_,
                    .grad_row = grad_layout_.pitch * scalars,
                    .rows = boundary(rows, t / across + 1, down) - row,
                    .cols = boundary(vectors, t % across + 1, across) - col,
                    .offsets = plan_.offsets.data(),
                    .bounds = plan_.segments(0, b, first),
                    .channels = last - first,
                    .sums = sums,
                    .ahead = &ahead_,
                    .ahead_grad = &ahead_grad_,
                    .walk = &walk_,
                    .shifts = shifts_});
    }
  }

  void row_tile(int64_t row, int64_t rows, int64_t first, int64_t last, S* sums) {
    if constexpr (std::is_same_v<S, float>) {
      const int64_t pitch = plan_.source.pitch;
      const auto accumulate_row_grad_tile =
          kRowTiles.at(rows, plan_.row.vectors, slot_vectors(plan_));
      for (int64_t b = 0; b < plan_.block.count; ++b)
        accumulate_row_grad_tile({.packed = packed_ + row * pitch,
                                  .grad = grad_ + first * grad_channel_ + row * pitch,
                                  .grad_channel = grad_channel_,
                                  .offsets = plan_.offsets.data(),
                                  .bounds = plan_.segments(0, b, first),
                                  .channels = last - first,
                                  .walk = &walk_,
                                  .shifts = shifts_,
                                  .sums = sums,
                                  .ahead = &ahead_,
                                  .ahead_grad = &ahead_grad_});
    }
  }

  // `cols` vectors of rows [row, row + rows), at most `most_cols` to a tile.
  void tiles_across(int64_t row, int64_t rows, int64_t cols, int64_t most_cols, int64_t first,
                    int64_t last, S* sums) {
    const int64_t scalars = plan_.batch.lane_images, count = ceil_div(cols, most_cols);
    for (int64_t t = 0; t < count; ++t) {
      const int64_t from = boundary(cols, t, count), to = boundary(cols, t + 1, count);
      const int64_t x_at = row * plan_.source.pitch * scalars + from * kLanes<S>;
      const int64_t grad_at = row * grad_layout_.pitch * scalars + from * kLanes<S>;
      const auto accumulate_grad_tile = kTiles<S>.at(rows, to - from);
      for (int64_t b = 0; b < plan_.block.count; ++b) {
        accumulate_grad_tile({.packed = packed_ + x_at,
                              .packed_row = plan_.source.pitch * scalars,
                              .grad = grad_ + first * grad_channel_ + grad_at,
                              .grad_channel = grad_channel_,
                              .grad_row = grad_layout_.pitch * scalars,
                              .offsets = plan_.offsets.data(),
                              .bounds = plan_.segments(0, b, first),
                              .channels = last - first,
                              .sums = sums,
                              .ahead = &ahead_,
                              .ahead_grad = &ahead_grad_});
      }
    }
  }

  const GradWeightArgs<S>& args_;
  const GatherPlan& plan_;
  const PackLayout& grad_layout_;
  S* packed_;
  S* packed_grad_;
  const S* grad_;         // of the unit: packed, or the gradient itself
  int64_t grad_channel_;  // scalars from one of its channels to the next
  char* map_memory_;
  char* grad_map_memory_;
  Ahead ahead_, ahead_grad_;
  Walk walk_;
  Turn shifts_[kMaxFrames];
};

// The sums of output channels [first, last) start at zero.
template <typename S>
void clear_sums(const GatherPlan& plan, int64_t first, int64_t last, S* sums) {
  for (int64_t b = 0; b < plan.block.count; ++b) {
    const int64_t begin = *plan.segments(0, b, first), end = *plan.segments(0, b, last);
    zero(sums + begin * plan.block_rows, (end - begin) * plan.block_rows);
  }
}

template <typename Worker, typename S>
void run_slices(const GradWeightArgs<S>& args) {
  const GatherPlan& plan = *args.plan;
  const int64_t nnz = plan.nnz();
  const int64_t share = grad_weight_bytes(plan, *args.grad_layout, sizeof(S));
  S* sums = slice_sums(args);
  const int64_t units = plan.units(args.n), rows = plan.rows();
  const int64_t parts = args.is_even() ? 1 : least(args.threads, rows);
#pragma omp parallel num_threads(args.threads)
  {
    const FlushSubnormals flush;
    Worker worker(args, args.workspace + thread_index() * share);
// Static, so that the next slice continues this one.
#pragma omp for schedule(static)
    for (int64_t item = 0; item < args.slices * parts; ++item) {
      const int64_t slice = item / parts;
      const int64_t first = boundary(rows, item % parts, parts) * plan.block_rows;
      const int64_t last = boundary(rows, item % parts + 1, parts) * plan.block_rows;
      S* of_slice = sums + slice * nnz;
      clear_sums(plan, first, last, of_slice);
      const int64_t end = boundary(units, slice + 1, args.slices);
      for (int64_t u = boundary(units, slice, args.slices); u < end; ++u) {
        const Unit next = unit_at(plan, args.n, u + 1);
        worker.run(unit_at(plan, args.n, u), parts == 1 && u + 1 < units ? &next : nullptr, first,
                   last, of_slice);
      }
    }
    add_slices(args);
  }
}

// Calls use(null pointer to the class that does the work of a unit).
template <typename S, typename Use>
void with_worker(const GatherPlan& plan, Use use) {
  if constexpr (std::is_same_v<S, float>) {
    if (plan.lanes == Lanes::kMatrix)
      return with_matrix_unit(plan, [&](auto* unit) {
        use(static_cast<GradMatrix<std::remove_pointer_t<decltype(unit)>>*>(nullptr));
      });
  }
  use(static_cast<GradWeight<S>*>(nullptr));
}

}  // namespace

template <typename S>
void grad_weight(const GradWeightArgs<S>& args) {
  with_worker<S>(*args.plan,
                 [&](auto* worker) { run_slices<std::remove_pointer_t<decltype(worker)>>(args); });
}

template <typename S>
void add_units(const GradWeightArgs<S>& args, char* share, int64_t begin, int64_t end, S* sums) {
  with_worker<S>(*args.plan, [&](auto* of) {
    std::remove_pointer_t<decltype(of)> worker(args, share);
    for (int64_t u = begin; u < end; ++u)
      worker.run(unit_at(*args.plan, args.n, u), nullptr, 0, args.plan->destination.channels, sums);
  });
}

template <typename S>
void add_slices(const GradWeightArgs<S>& args) {
  const GatherPlan& plan = *args.plan;
  const int64_t nnz = plan.nnz();
  const S* sums = slice_sums(args);
#pragma omp for schedule(static)
  for (int64_t k = 0; k < nnz; ++k) {
    S sum = 0;
    for (int64_t slice = 0; slice < args.slices; ++slice) sum += sums[slice * nnz + k];
    args.grad_values[plan.value_index[k]] = sum;
  }
}

#define DSR_INSTANTIATE(S)                                                           \
  template void grad_weight<S>(const GradWeightArgs<S>&);                            \
  template void add_units<S>(const GradWeightArgs<S>&, char*, int64_t, int64_t, S*); \
  template void add_slices<S>(const GradWeightArgs<S>&);
DSR_INSTANTIATE(float)
DSR_INSTANTIATE(double)

}  // namespace dsr::cpu::DSR_ISA
