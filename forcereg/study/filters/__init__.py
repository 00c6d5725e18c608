"""The filters of one layer, looked at: as they are, by their basis, in a plane, by their angles."""
