// A pass and its tilings as tuples of Python, in the order of the structs of cuda/conv/plan.
#pragma once

#include <array>
#include <cstdint>
#include <optional>
#include <string>
#include <tuple>
#include <vector>

#include "bindings/common.h"
#include "cuda/conv/plan/conv_plan.h"

namespace dsr::bindings {

using Pair = std::array<int64_t, 2>;
using Triple = std::array<int64_t, 3>;
using Quad = std::array<int64_t, 4>;

using LayoutTuple = std::tuple<int64_t, int64_t, int64_t, int64_t, int64_t, int64_t, int64_t,
                               int64_t, int64_t, double>;
using ClassTuple =
    std::tuple<int64_t, int64_t, int64_t, int64_t, int64_t, int64_t, std::vector<Triple>>;
using ShapeTuple = std::tuple<int64_t, int64_t, int64_t, int64_t, int64_t, int64_t, int64_t,
                              int64_t, int64_t, int64_t, bool, std::vector<ClassTuple>>;
using GatherTilingTuple =
    std::tuple<int64_t, int64_t, int64_t, int64_t, std::vector<LayoutTuple>, double>;
using GradWeightTilingTuple = std::tuple<int64_t, int64_t, int64_t, int64_t, LayoutTuple, double>;
using WindowGradWeightTilingTuple =
    std::tuple<int64_t, int64_t, int64_t, int64_t, int64_t, int64_t, LayoutTuple, double>;
using KeyTuple = std::tuple<bool, int64_t, int64_t, int64_t, int64_t, int64_t, int64_t, py::tuple,
                            py::tuple, py::tuple>;

inline Strides4 strides_of(const Quad& s) { return {s[0], s[1], s[2], s[3]}; }

// Sizes are (C, H, W); the padding that at the top and on the left.
ConvShape conv_shape(const Triple& in_size, const Triple& out_size, const Pair& kernel,
                     const Pair& stride, const Pair& padding, const Pair& dilation, int64_t groups);

template <class Struct, class Tuple>
Struct from_tuple(const Tuple& tuple) {
  return std::apply([](const auto&... fields) { return Struct{fields...}; }, tuple);
}

LayoutTuple tuple_of(const cuda::Layout& layout);
ClassTuple tuple_of(const cuda::PassClass& c);
ShapeTuple tuple_of(const cuda::PassShape& shape);
GatherTilingTuple tuple_of(const cuda::GatherTiling& tiling);
GradWeightTilingTuple tuple_of(const cuda::GradWeightTiling& tiling);
WindowGradWeightTilingTuple tuple_of(const cuda::WindowGradWeightTiling& tiling);
KeyTuple tuple_of(const cuda::ListKey& key);

std::vector<cuda::Layout> layouts_of(const std::vector<LayoutTuple>& tuples);
cuda::PassClass class_of(const ClassTuple& tuple);
cuda::PassShape shape_of(const ShapeTuple& tuple);
cuda::GatherTiling tiling_of(const GatherTilingTuple& tuple);
cuda::GradWeightTiling tiling_of(const GradWeightTilingTuple& tuple);
cuda::WindowGradWeightTiling tiling_of(const WindowGradWeightTilingTuple& tuple);

template <class T>
auto tuples_of(const std::vector<T>& structs) {
  std::vector<decltype(tuple_of(structs[0]))> found;
  for (const T& one : structs) found.push_back(tuple_of(one));
  return found;
}

// Every field of a plan's launches, for people and for tests.
py::dict describe(const cuda::ConvPlan& plan);

cuda::Direction direction_named(const std::string& direction);

inline const char* name_of(cuda::Kind kind) {
  using cuda::Kind;
  return kind == Kind::kSlab ? "slab" : kind == Kind::kWindow ? "window" : "direct";
}

// gather, grad_weight and workspace_bytes.
void define_calls(py::class_<cuda::ConvPlan>& plan);

}  // namespace dsr::bindings
