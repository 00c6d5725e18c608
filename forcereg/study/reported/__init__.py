"""What a report says of snapshots, logs and studies: read from their files, nothing made up."""
