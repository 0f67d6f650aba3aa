"""Image files of any origin as arrays: headers before decoding, DICOM, windows of grey values, masks."""
