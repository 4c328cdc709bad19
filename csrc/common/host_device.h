// One spelling for functions that the C++ and the CUDA compiler both build.
#pragma once

#if defined(__CUDACC__)
#define DSR_HOST_DEVICE __host__ __device__ __forceinline__
#else
#define DSR_HOST_DEVICE inline
#endif
