"""What a run leaves on disk and takes up again: run folders, checkpoints, trained parameters. Light to import.

`folders` are the folders of runs, `checkpoints` any pytree of arrays, `stored` how Orbax stores one, `trained` and
`safetensors` what other programs saved, `old_names` what earlier versions called things.
"""
