// The pixels of a unit as matrix units take them: pieces of two halves, 16 pixels each.
//
// Where the destination's rows are whole pieces, or halves, pieces begin with them: then margins
// are not computed, and a piece is stored as one run. Else pieces follow each other along the
// plane.
#pragma once

#include "cpu/isa/store_plane.h"

namespace dsr::cpu::DSR_ISA {

class Pieces {
 public:
  Pieces(const GatherPlan& plan, const DestinationClass& target, const Unit& unit,
         const Strides4& strides)
      : plan_(plan),
        target_(target),
        unit_(unit),
        strides_(strides),
        rows_(least(unit.rows, target.rows - unit.row)) {
    const PackLayout& l = plan.source;
    if (rows_ <= 0 || target.cols <= 0) return;
    if (plan.row.pieces == 0) {
      const int64_t elements =
          ((unit.images - 1) * l.image_rows + rows_ - 1) * l.pitch + target.cols;
      count_ = ceil_div(elements, kMatrixPixels);
    } else {
      of_image_ = plan.row.halves ? ceil_div(rows_, 2) : rows_ * plan.row.pieces;
      count_ = unit.images * of_image_;
    }
  }

  int64_t count() const { return count_; }

  // Where piece i begins, in elements of the plane.
  int64_t at(int64_t i) const {
    if (plan_.row.pieces == 0) return i * kMatrixPixels;
    const Place p = place(i);
    return (p.image * plan_.source.image_rows + p.row) * plan_.source.pitch + p.col;
  }
  // From its first half to its second one.
  int64_t half() const { return plan_.row.halves ? plan_.source.pitch : kMatrixRows; }

  // Where the pixels of the pieces [begin, end) are stored; returns how many runs.
  int runs(int64_t begin, int64_t end, Run* runs) const {
    if (plan_.row.pieces == 0)
      return find_runs(plan_, target_, unit_, strides_, begin * kMatrixPixels,
                       (end - begin) * kMatrixPixels, runs);
    int found = 0;
    const auto add = [&](int64_t from, int64_t length, int64_t to) {
      Run* last = found ? &runs[found - 1] : nullptr;
      if (last && last->from + last->length == from && last->to + last->length * last->step == to) {
        last->length += length;
      } else {
        runs[found++] = {from, length, to, strides_.w};
      }
    };
    for (int64_t i = begin; i < end; ++i) {
      const Place p = place(i);
      const int64_t from = (i - begin) * kMatrixPixels;
      const int64_t to = (unit_.image + p.image) * strides_.n +
                         (target_.row0 + unit_.row + p.row) * strides_.h +
                         (target_.col0 + p.col) * strides_.w;
      add(from, plan_.row.halves ? kMatrixRows : kMatrixPixels, to);
      if (plan_.row.halves && p.row + 1 < rows_)
        add(from + kMatrixRows, kMatrixRows, to + strides_.h);
    }
    return found;
  }

 private:
  struct Place {
    int64_t image, row, col;
  };
  Place place(int64_t i) const {
    const int64_t image = i / of_image_, within = i % of_image_;
    if (plan_.row.halves) return {image, within * 2, 0};
    return {image, within / plan_.row.pieces, within % plan_.row.pieces * kMatrixPixels};
  }

  const GatherPlan& plan_;
  const DestinationClass& target_;
  const Unit& unit_;
  const Strides4& strides_;
  int64_t rows_, of_image_ = 0, count_ = 0;
};

}  // namespace dsr::cpu::DSR_ISA
