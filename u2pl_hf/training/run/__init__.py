"""What a run leaves and tells: its folder, checkpoints, results, trackers and uploads; and what ends it early.

From outside: `run_folder.RunFolder`; `checkpoint.save_checkpoint`, `load_checkpoint`; `tracking.Progress`, `Clock`,
`choose_trackers`; `health.find_signs`; `endings.StopRequest`, `FiniteLosses`, `failures_in_one_line`;
`report.gather_results`, `summary`, `kept_step`, `picture_samples`; `model_folder.export_model`, `best_model`,
`export_best`, `export_finished`; `upload.RunPush`, `push_finished`.
"""
