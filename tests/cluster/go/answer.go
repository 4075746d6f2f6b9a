package main

import (
	"bufio"
	"encoding/json"
	"errors"
	"io"
	"os"
)

const bufferSize = 1 << 20 // bytes; a line may be longer

// answer reads JSON lines and writes one line for each, in order. A line that
// cannot be answered gets {"error": "..."}, so that the lines still pair up.
// Output is flushed whenever the next read could block.
func answer(reply func(line []byte) ([]byte, error)) {
	in := bufio.NewReaderSize(os.Stdin, bufferSize)
	out := bufio.NewWriterSize(os.Stdout, bufferSize)
	for {
		line, readErr := in.ReadBytes('\n')
		if len(line) > 0 {
			text, err := reply(line)
			if err != nil {
				text = mustJSON(map[string]string{"error": err.Error()})
			}
			_, _ = out.Write(append(text, '\n'))
		}
		if in.Buffered() == 0 || readErr != nil {
			if err := out.Flush(); err != nil {
				fail(err) // nobody reads the answers any more
			}
		}
		if errors.Is(readErr, io.EOF) {
			return
		}
		if readErr != nil {
			fail(readErr)
		}
	}
}

// mustJSON is for values that cannot fail to encode.
func mustJSON(value any) []byte {
	text, err := json.Marshal(value)
	if err != nil {
		panic(err)
	}
	return text
}
