#include "tandem/graph.h"

#include "runtime/program.h"

struct tdm_graph {
  tdm_program* program;
  void* capture; /* the device's */
};

tdm_status tdm_graph_capture(tdm_program* program, tdm_graph** out_graph) {
  if (out_graph) *out_graph = NULL;
  if (!program || !out_graph)
    return TDM_FAIL(TDM_INVALID_ARGUMENT, "tdm_graph_capture: program and out_graph must not be NULL");
  tdm_graph* graph = tdm_host_alloc(program->runtime, sizeof *graph);
  if (!graph) return TDM_OUT_OF_MEMORY;
  const tdm_status status = tdm_program_capture(program, &graph->capture);
  if (status != TDM_OK) {
    tdm_host_free(program->runtime, graph, sizeof *graph);
    return status;
  }
  tdm_program_retain(program);
  graph->program = program;
  tdm_runtime_retain(program->runtime, TDM_OBJECT_GRAPH);
  *out_graph = graph;
  return TDM_OK;
}

void tdm_graph_destroy(tdm_graph* graph) {
  if (!graph) return;
  tdm_program* program = graph->program;
  tdm_runtime* runtime = program->runtime;
  tdm_program_release_capture(program, graph->capture);
  tdm_host_free(runtime, graph, sizeof *graph);
  tdm_program_destroy(program);
  tdm_runtime_release(runtime, TDM_OBJECT_GRAPH);
}

tdm_status tdm_graph_replay(tdm_graph* graph, const tdm_launch_config* config) {
  if (!graph) return TDM_FAIL(TDM_INVALID_ARGUMENT, "tdm_graph_replay: graph must not be NULL");
  return tdm_program_replay(graph->program, graph->capture, config);
}

tdm_program* tdm_graph_program(const tdm_graph* graph) {
  return graph ? graph->program : NULL;
}
