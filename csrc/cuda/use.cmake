# Finds out whether GPU kernels would be of use, where DSR_CUDA=AUTO leaves that open: an nvcc alone
# says little, and they take minutes. Leaves `problem` empty where they would.
function(find_use)
  set(problem "" PARENT_SCOPE)
  # Who names a compiler or targets wants them.
  if(NOT "$ENV{CUDACXX}" STREQUAL "" OR NOT DSR_CUDA_ARCHITECTURES STREQUAL "AUTO")
    return()
  endif()
  foreach(sign /proc/driver/nvidia/version /dev/nvidiactl /dev/nvidia0 /usr/lib/wsl/lib/libcuda.so.1)
    if(EXISTS ${sign})
      return()
    endif()
  endforeach()
  find_library(DSR_CUDA_DRIVER libcuda.so.1)
  mark_as_advanced(DSR_CUDA_DRIVER)
  execute_process(COMMAND ${Python_EXECUTABLE} -I ${CMAKE_CURRENT_LIST_DIR}/find_torch.py
    OUTPUT_VARIABLE torch_cuda OUTPUT_STRIP_TRAILING_WHITESPACE ERROR_QUIET)
  if(DSR_CUDA_DRIVER OR torch_cuda)
    return()
  endif()
  set(problem "there is ${DSR_CUDA_COMPILER}, but neither an NVIDIA driver nor a torch with CUDA: to build them all the same, DSR_CUDA=ON pip install ." PARENT_SCOPE)
endfunction()
