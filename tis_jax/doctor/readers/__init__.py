"""What reads which file. All of them read numbers; none runs what it reads."""
