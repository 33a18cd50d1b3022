"""Downloaded archives, unpacked safely."""
