"""Run-time control for today's vLLM: `/v1/runtime_config` on a port of its own.

Two start-up arguments load it: `--scheduler-cls tuner_vllm.scheduler.TunerScheduler` in the engine
core, `--middleware tuner_vllm.middleware.TunerControl` in the API server.
"""
