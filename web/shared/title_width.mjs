// The host cuts the title of a node that is wide enough for its slots only.
import { isOurs } from './kinds.mjs'

const LETTER = 9 // pixels, on average
const AROUND = 60 // the box in front of the title, and margins

export function titleWidth() {
  return {
    nodeCreated(node) {
      if (!isOurs(node)) return
      const width = Math.ceil([...node.title].length * LETTER + AROUND)
      if (node.size[0] < width) node.setSize([width, node.size[1]])
    }
  }
}
