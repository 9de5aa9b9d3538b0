import pytest
from huggingface_hub import HfApi

from u2pl_hf import U2PLConfig, U2PLForSemanticSegmentation
from u2pl_hf.evaluation.loading import dataset_commit, load_model
from u2pl_hf.evaluation.mean_iou import BYTE


def test_commit_of_a_data_set_on_the_hub(hub, tmp_path):
    api = HfApi()
    api.create_repo("user/photos", repo_type="dataset")
    upload = {"repo_id": "user/photos", "repo_type": "dataset", "path_in_repo": "a.txt"}
    first = api.upload_file(path_or_fileobj=b"one", **upload).oid
    second = api.upload_file(path_or_fileobj=b"two", **upload).oid
    assert first != second
    assert dataset_commit("user/photos") == second
    assert dataset_commit("user/photos", first) == first
    assert dataset_commit("user/missing") is None
    assert dataset_commit("demo") is dataset_commit(str(tmp_path)) is None


def test_more_classes_than_a_mask_can_hold_are_refused(tmp_path):
    config = U2PLConfig(backbone="resnet18", base_width=2, head_channels=4, representation_channels=0, num_labels=BYTE)
    U2PLForSemanticSegmentation(config).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="256 classes, and masks are 8-bit: at most 255"):
        load_model(str(tmp_path), device="cpu")
