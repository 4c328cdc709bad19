// A launch of gathers whose weights may be infinite or NaN.
#pragma once

#include <vector>

#include "cpu/conv/finish_apart.h"
#include "cpu/conv/nonfinite.h"
#include "cpu/conv/workspace.h"

namespace dsr::cpu {

// launch(args(values)), with what values that are not finite contribute added where their taps meet
// the source. Where more is done to the sums, that follows in a pass of its own.
template <typename S, typename Args, typename Launch>
void launch_finite(const S* values, int64_t nnz, Args args, Launch launch) {
  if (all_finite(values, nnz)) return launch(args(values));
  const std::vector<S> finite = finite_part(values, nnz);
  GatherArgs<S> of_finite = args(finite.data());
  const GatherArgs<S> whole = of_finite;
  std::vector<char> memory;
  S* sums = nullptr;
  if (whole.finish.kind != Finish<S>::kNothing) {
    const GatherPlan::Destination& d = whole.plan->destination;
    const int64_t row = d.width, plane = d.height * row, image = d.channels * plane;
    memory.resize(whole.n * image * sizeof(S) + kAlignment);
    sums = reinterpret_cast<S*>(align_up(memory.data()));
    of_finite.finish = {};
    of_finite.destination = sums;
    of_finite.destination_strides = {image, plane, row, 1};
    of_finite.destination_element = sizeof(S) == 4 ? Element::kFloat32 : Element::kFloat64;
  }
  launch(of_finite);
  add_nonfinite(of_finite, values);
  if (sums) finish_apart(whole, sums);
}

}  // namespace dsr::cpu
