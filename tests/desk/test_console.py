"""What the command line shows to a person."""

from gateway import console


def test_a_strangers_file_cannot_move_the_terminal(capsys):
    console.facts([("signer", "Eve\x1b[2J\nstate      trusted\u202e"), ("model", "")])
    shown = capsys.readouterr().out
    assert shown == "signer     Eve�[2J�state      trusted�\n"
