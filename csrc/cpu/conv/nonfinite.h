// Infinities and NaN, where the kernels' lanes that only pad have multiplied them with zero.
//
// Kernels compute on the margins of the packed tensors, since to skip them would cost more. There
// one factor is zero, which leaves sums as they are unless the other factor is infinite or NaN. So
// results would be NaN where a dense convolution, which never reads the padding, is finite. What
// came out finite is right. Only the rest is computed anew, which costs a healthy run one look at
// its weights or their gradients.
#pragma once

#include <cstdint>
#include <vector>

#include "cpu/conv/kernels.h"

namespace dsr::cpu {

template <typename S>
bool all_finite(const S* values, int64_t count);

// The values, with zero in the place of those that are not finite.
template <typename S>
std::vector<S> finite_part(const S* values, int64_t count);

// Adds to a destination what the values that are not finite, of values [nnz] in the pattern's
// order, contribute where their taps meet the source.
template <typename S>
void add_nonfinite(const GatherArgs<S>& args, const S* values);

// Sums anew those of args.grad_values that are not finite.
template <typename S>
void mend_grad_values(const GradWeightArgs<S>& args);

}  // namespace dsr::cpu
