"""Variants that take long and whose kind a quicker variant shows: `make test` leaves them to the slow suite, as if each were marked so."""

from __future__ import annotations

from fnmatch import fnmatchcase

SLOW_VARIANTS = (
    # Exports: text and images like tokens; every kind of layer and family has one in `make test`.
    "tests/system/test_export.py::test_text_is_read_without_heron*",
    "tests/system/test_export.py::test_images_are_classified_without_heron*",
    "tests/system/test_export.py::test_onnx_files_hold_standard_operators_only*",
    "tests/server/models/test_resnet.py::test_programs_equal_the_network*ImageNet stem*gradient*",
    "tests/server/models/test_resnet.py::test_programs_equal_the_network*50, CIFAR stem*gradient*",
    "tests/server/models/test_transformers.py::test_programs_equal_torch_gradients_included*llama*",
    "tests/server/models/test_transformers.py::test_programs_equal_torch_gradients_included*bert*",
    "tests/server/models/test_transformers.py::test_programs_equal_torch_gradients_included*gpt2-next_token-9*",
    "tests/server/models/test_user_tokens.py::test_programs_are_equal_to_the_model*language*",
    "tests/server/models/test_user_tokens.py::test_programs_are_equal_to_the_model*frozen_and_tied*",
    "tests/server/models/test_batch_norm.py::test_a_program_is_a_step_of_torch*images*",
    "tests/server/models/test_batch_norm.py::test_a_program_is_a_step_of_torch*signals*",
    "tests/server/models/test_base.py::test_a_clients_program_over_a_mapped_base_equals_the_model*bfloat16*",
    "tests/server/programs/test_first_order_programs.py::test_gradients_equal_autograds*group norms*",
    "tests/server/programs/test_first_order_programs.py::test_gradients_equal_autograds*strides*",
    "tests/server/programs/test_first_order_programs.py::test_gradients_equal_autograds*stride 1*",
    "tests/server/programs/test_first_order_programs.py::test_gradients_equal_autograds*embedded*",
    "tests/server/programs/test_first_order_programs.py::test_gradients_equal_autograds*maxima*",
    "tests/server/programs/test_first_order_programs.py::test_a_rounds_gradient_is_the_sum*",
    "tests/cli/test_cuts_command.py::test_the_estimate_is_what_whole_clients_of_gpt2_took*",
    "tests/client/training/test_text_lengths.py::test_a_round_of_two_lengths*predicting-heron*",
    # Whole runs: one of each kind is left.
    "tests/system/test_text_lengths.py::test_a_run_learns*bert*",
    "tests/system/test_demo.py::test_an_interrupted_demo_leaves_no_process_behind*",
    "tests/system/test_examples.py::test_minilm_on_tweets*",
    "tests/system/test_examples.py::test_resnet_18_on_images*",
    "tests/system/test_simulation.py::test_fifty_clients*",
    "tests/system/test_algorithms_ledger.py::test_the_ledger_of_a_run_is_the_closed_form*sflv1*",
    "tests/system/test_algorithms_reference.py::test_every_round_ends_where_plain_torch_ends*sequential*",
    "tests/system/test_batch_norm.py::test_statistics_are_in_the_ledger_and_move_in_every_preset*heron*",
    "tests/system/test_poisoned_client.py::test_a_client_that_sends_random_labels*",
    "tests/system/test_network_faults.py::test_what_leaves_a_connection_open_and_dead*",
    "tests/system/test_audit.py::test_what_cannot_be_audited_says_why*",
    # Memory: the ceiling of a client of small batches and that of one of 1,024 stay.
    "tests/system/test_backpressure.py::*",
    "tests/system/test_client_memory.py::test_a_small_batch_stays_under_the_ceiling*",
    "tests/system/test_lean_client.py::test_a_client_stays_under_its_memory_ceiling*64*",
    "tests/system/test_lean_client.py::test_memory_does_not_grow_from_round_to_round*",
    "tests/system/test_lean_client.py::test_nothing_of_the_runtime_reports_to_its_maker*",
    # Time is what they are about.
    "tests/server/service/test_idle_connections.py::test_idle_connections_are_closed_in_time*",
    "tests/system/test_stopped_start.py::test_a_server_ends_though_its_model_takes_an_hour_to_build*",
)
"""Patterns of node ids, as a shell has them; in brackets are a test's parameters."""


def is_slow_variant(node_id: str) -> bool:
    """Whether a test is one of these."""
    # A pattern's brackets would be sets of characters.
    plain = node_id.replace("[", "(").replace("]", ")")
    return any(fnmatchcase(plain, pattern) for pattern in SLOW_VARIANTS)
