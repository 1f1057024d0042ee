// Puts a concept of a library into the graph being looked at: into the text of a node that takes one, or as a new pair of nodes.
import { change, parse } from '../picker/selection.mjs'
import { isMentioned, mentionOf } from '../prompt/mention.mjs'
import { LIBRARY, libraryOf } from './find_library.mjs'
import { APPLY, LOAD, PROMPT, TAKING } from './kinds.mjs'

export const DRAGGED = 'application/x-seqlora-concept'
const GAP = 60 // between nodes, in the graph's units

export class Inserter {
  #app
  #t
  #shelf

  constructor({ app, t, shelf }) {
    this.#app = app
    this.#t = t
    this.#shelf = shelf
  }

  // At a place of the graph, as from a drop: [x, y].
  async insertAt(place, dragged) {
    const node = this.#app.canvas.graph.getNodeOnPos(...place)
    await (TAKING[node?.type] ? this.#addTo(node, dragged) : this.#addPair(place, dragged))
  }

  // Without a pointer: into the node that is selected, if it takes concepts, else in the middle of what is seen.
  async insert(dragged) {
    const { canvas } = this.#app
    const chosen = Object.values(canvas.selected_nodes).filter(({ type }) => TAKING[type])
    if (chosen.length === 1) return this.#addTo(chosen[0], dragged)
    const { left, top, width, height } = canvas.canvas.getBoundingClientRect()
    const [x, y] = this.#app.clientPosToCanvasPos([left + width / 2, top + height / 2])
    return this.#addPair([x - 200, y - 100], dragged)
  }

  async #addTo(node, { library, concept }) {
    const field = TAKING[node.type]
    const text = node.widgets.find(({ name }) => name === field)
    if (node.inputs.some(({ name, link }) => name === field && link != null)) return this.#tell('warn', 'picker.elsewhere')
    const used = libraryOf(this.#app, node)
    if (used && used !== library) return this.#tell('warn', 'library.other', { used, library })
    const known = (await this.#shelf.library(library)).concepts.map(({ name }) => name)
    const isPrompt = node.type === PROMPT
    const isOn = isPrompt ? isMentioned(text.value, concept) : used !== null && parse(text.value, known).on.has(concept)
    if (isOn) return this.#tell('info', 'library.isOn', { concept })
    this.#asOne(() => {
      // A node without a library has not been set up: its '*' is nobody's choice.
      const before = used === null && text.value.trim() === '*' ? '' : text.value
      if (used === null) connect(this.#makeLoad([node.pos[0], node.pos[1]], library, true), node)
      text.value = isPrompt ? `${before.trimEnd()} ${mentionOf(concept)}`.trimStart() : change(before, known, concept, 1)
    })
    return this.#tell('success', 'library.added', { concept })
  }

  #addPair(place, { library, concept }) {
    this.#asOne(() => {
      const load = this.#makeLoad(place, library)
      const apply = this.#makeNode(APPLY, [load.pos[0] + load.size[0] + GAP, load.pos[1]])
      apply.widgets.find(({ name }) => name === 'concepts').value = concept
      connect(load, apply)
      this.#app.canvas.selectNode(apply) // the next one goes into it
    })
    this.#tell('success', 'library.added', { concept })
  }

  #makeLoad([x, y], library, isBefore = false) {
    const load = this.#makeNode(LOAD, [x, y])
    if (isBefore) load.pos = [x - load.size[0] - GAP, y]
    load.widgets.find(({ name }) => name === 'name').value = library
    return load
  }

  #makeNode(kind, place) {
    const node = LiteGraph.createNode(kind)
    node.pos = place
    this.#app.canvas.graph.add(node)
    return node
  }

  // One step for undo.
  #asOne(act) {
    const { canvas } = this.#app
    canvas.emitBeforeChange()
    try {
      act()
    } finally {
      canvas.emitAfterChange()
      canvas.setDirty(true, true)
      afterFrames(2, () => canvas.setDirty(true, true)) // the elements of new nodes have their places only then
    }
  }

  #tell(severity, key, values) {
    this.#app.extensionManager.toast.add({ severity, summary: this.#t(key, values), life: 4000 })
  }
}

function afterFrames(count, act) {
  requestAnimationFrame(() => (count > 1 ? afterFrames(count - 1, act) : act()))
}

function connect(load, apply) {
  const output = load.outputs.findIndex(({ type }) => type === LIBRARY)
  load.connect(output, apply, apply.inputs.findIndex(({ type }) => type === LIBRARY))
}

// Drops onto the graph. The host's own listener, which takes what is dropped for a file, leaves what is handled before it.
export function listenForDrops(app, onDrop) {
  const isOurs = (event) => event.dataTransfer?.types.includes(DRAGGED)
    && app.canvas.canvas.parentElement.contains(event.target)
    && !event.target.closest('.side-bar-panel')
  document.addEventListener('dragover', (event) => {
    if (!event.dataTransfer || !isOurs(event)) return
    event.preventDefault()
    event.dataTransfer.dropEffect = 'copy'
  }, true)
  document.addEventListener('drop', (event) => {
    if (!event.dataTransfer || !isOurs(event)) return
    event.preventDefault()
    onDrop(app.clientPosToCanvasPos([event.clientX, event.clientY]), JSON.parse(event.dataTransfer.getData(DRAGGED)))
  }, true)
}
