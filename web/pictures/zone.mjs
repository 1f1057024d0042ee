// On Load Concept Pictures: a place to drop, paste or choose pictures, and a list of them with their captions. Files go to a
// folder of the host's input by its own upload; the node's widgets name folder and files, and are all that is saved.
import { icon, make } from '../shared/dom.mjs'
import { addElement, forwardToCanvas } from '../shared/dom_widget.mjs'
import { format, parse } from './list.mjs'
import { Row } from './row.mjs'
import { filesOf, newFolder, sorted, stem, upload } from './upload.mjs'

const HEIGHT = 260
const ACCEPTED = 'image/*,.txt,.caption'

export class DropZone {
  #app
  #api
  #t
  #node
  #widgets
  #rows = new Map() // by file
  #shown = '' // what the rows were made of
  #turn = 0
  #isBusy = false // what is listed and what was looked at do not fit together yet
  #survey = { key: '', told: /** @type {any} */ (null) }

  constructor(node, { app, api, t }) {
    this.#app = app
    this.#api = api
    this.#t = t
    this.#node = node
    this.#widgets = Object.fromEntries(node.widgets.map((widget) => [widget.name, widget]))
    this.status = make('p', { class: 'seqlora-zone-status', role: 'status' })
    this.list = make('ul', { class: 'seqlora-rows' })
    const chooser = /** @type {HTMLInputElement} */ (make('input', {
      type: 'file', multiple: true, accept: ACCEPTED, hidden: true, onchange: () => {
        const files = [...chooser.files ?? []]
        chooser.value = ''
        this.add(files)
      }
    }))
    this.invitation = make('p', { class: 'seqlora-invitation' }, t('pictures.drop'))
    this.button = make('button', { type: 'button', class: 'seqlora-button', onclick: () => chooser.click() },
      icon('images'), t('pictures.choose'))
    this.element = make('div', {
      class: 'seqlora-zone', 'data-capture-wheel': 'true', role: 'group', 'aria-label': t('pictures.name'),
      ondragenter: (event) => this.#hover(event), ondragover: (event) => this.#hover(event),
      ondragleave: (event) => { if (!this.element.contains(event.relatedTarget)) this.#mark(false) },
      ondrop: (event) => this.#drop(event)
    }, this.status, this.list, make('div', { class: 'seqlora-zone-add' }, this.invitation, this.button, chooser))
    this.list.addEventListener('wheel', (event) => {
      if (!event.ctrlKey && this.list.scrollHeight > this.list.clientHeight) event.stopPropagation()
    })
    forwardToCanvas(this.element, app)
    this.#place()
  }

  #place() {
    const node = this.#node, text = this.#widgets.pictures
    text.hidden = text.options.hidden = true // the list below says the same
    addElement(node, 'zone', this.element, { getMinHeight: () => HEIGHT })
    node.setSize([Math.max(node.size[0], 340), Math.max(node.computeSize()[1], node.size[1])])
    node.onDragOver = isFiles // the host marks the node, and hands over what is dropped on the rest of it
    node.onDragDrop = (event) => isFiles(event) && this.#take(event)
    for (const name of ['folder', 'resolution', 'pictures']) this.#follow(name)
    this.#draw()
  }

  // A folder that is chosen from the list is meant as a whole.
  #follow(name) {
    const widget = this.#widgets[name], before = widget.callback
    widget.callback = (...given) => {
      const result = before?.apply(widget, given)
      if (name === 'folder') this.#widgets.pictures.value = ''
      this.refresh()
      return result
    }
  }

  get #folder() {
    return String(this.#widgets.folder.value ?? '')
  }

  get #isElsewhere() {
    return this.#node.inputs.some(({ name, link }) => (name === 'folder' || name === 'pictures') && link != null)
  }

  // Looks at what the widgets say, and anew at the folder if it is another one or `isNew`.
  async refresh(isNew = false) {
    if (this.#isBusy) return
    const turn = ++this.#turn, folder = this.#folder, resolution = this.#widgets.resolution.value
    const key = `${resolution} ${folder}`
    if (this.#isElsewhere || !folder) this.#survey = { key: '', told: null }
    else if (isNew || key !== this.#survey.key) {
      const answer = await this.#api.fetchApi(`/seqlora/pictures?${new URLSearchParams({ folder, resolution })}`).catch(() => null)
      const told = answer ? await answer.json().catch(() => ({})) : { error: this.#t('pictures.unreachable') }
      if (turn !== this.#turn) return
      this.#survey = { key, told: told.pictures ? told : { pictures: [], left_out: {}, more: 0, problem: told.error ?? answer?.statusText } }
    }
    this.#draw()
  }

  // file -> caption, of all that will be taught.
  #chosen() {
    const chosen = parse(String(this.#widgets.pictures.value))
    if (chosen.size) return chosen
    return new Map((this.#survey.told?.pictures ?? []).map(({ file }) => [file, null]))
  }

  #draw(said = '') {
    const { told } = this.#survey, chosen = this.#isElsewhere ? new Map() : this.#chosen()
    const seen = new Map((told?.pictures ?? []).map((about) => [about.file, about]))
    this.#makeRows([...chosen.keys()], seen)
    for (const [file, row] of this.#rows) row.caption.value = chosen.get(file) ?? seen.get(file)?.caption ?? ''
    this.element.classList.toggle('seqlora-empty', !chosen.size)
    this.invitation.hidden = chosen.size > 0
    this.button.lastChild.textContent = this.#t(chosen.size ? 'pictures.add' : 'pictures.choose')
    this.button.hidden = this.#isElsewhere
    this.#say(said || this.#summary(chosen))
  }

  #summary(chosen) {
    if (this.#isElsewhere) return this.#t('pictures.elsewhere')
    const { told } = this.#survey
    if (told?.problem) return told.problem
    if (!chosen.size) return this.#folder && told ? this.#t('pictures.none', { folder: this.#folder }) : ''
    const remarkable = [...this.#rows.values()].filter((row) => row.isRemarkable).length
    const left = parse(String(this.#widgets.pictures.value)).size ? [] : Object.entries(told?.left_out ?? {})
    return [this.#t('pictures.count', { count: chosen.size }), remarkable > 0 && this.#t('pictures.remarkable', { count: remarkable }),
      told?.more > 0 && this.#t('pictures.more', { count: told.more }),
      ...left.map(([file, why]) => this.#t('pictures.left', { file, why }))].filter(Boolean).join(' \u00b7 ')
  }

  #makeRows(files, seen) {
    const made = JSON.stringify([files, [...seen.values()], this.#survey.told?.left_out])
    if (made === this.#shown) return
    this.#shown = made
    const rows = files.map((file) => {
      const about = seen.get(file)
      const twin = about?.twin && files.includes(about.twin.file) ? about.twin : null
      const problem = about || !this.#survey.told ? '' : this.#survey.told.left_out[file] ?? this.#t('pictures.missing')
      return [file, new Row(this.#t, file, about, problem, twin, {
        caption: (text) => this.#change((chosen) => chosen.set(file, text)),
        remove: () => this.#remove(file)
      })]
    })
    this.#rows = new Map(rows)
    this.list.replaceChildren(...[...this.#rows.values()].map(({ element }) => element))
  }

  #remove(file) {
    const at = [...this.#rows.keys()].indexOf(file)
    this.#change((chosen) => chosen.delete(file))
    const next = [...this.#rows.values()][Math.min(at, this.#rows.size - 1)]
    ;(next?.remover ?? this.button).focus()
  }

  // One step for undo. Without a picture there is no folder either, since no list means all of it.
  #change(act, folder = this.#folder) {
    const chosen = folder === this.#folder ? this.#chosen() : new Map()
    act(chosen)
    this.#app.canvas.emitBeforeChange()
    this.#setFolder(chosen.size ? folder : '')
    this.#widgets.pictures.value = format(chosen)
    this.#app.canvas.emitAfterChange()
    this.#app.canvas.setDirty(true, true)
    this.refresh()
  }

  #setFolder(folder) {
    const { folder: widget } = this.#widgets
    if (Array.isArray(widget.options.values) && !widget.options.values.includes(folder)) {
      widget.options.values = [...widget.options.values, folder] // the host's list is as old as the page
    }
    widget.value = folder
  }

  // Uploads files and puts them on the list, those with a caption of the same name with it.
  async add(files) {
    if (this.#isElsewhere || !files.length) return
    const { pictures, captions, refused } = await sorted(files)
    const folder = this.#chosen().size ? this.#folder : newFolder()
    const added = []
    let trouble = refused.length ? this.#t('pictures.refused', { files: refused.join(', ') }) : ''
    this.#setBusy(true)
    for (const [at, file] of pictures.entries()) {
      this.#say(this.#t('pictures.uploading', { at: at + 1, of: pictures.length }))
      try {
        added.push([await upload(this.#api, file, folder), captions.get(stem(file.name)) ?? null])
      } catch (error) {
        trouble = this.#t('pictures.failed', { problem: error.message })
      }
    }
    if (added.length) {
      this.#change((chosen) => { for (const [name, caption] of added) chosen.set(name, caption ?? chosen.get(name) ?? null) }, folder)
    }
    this.#setBusy(false)
    await this.refresh(added.length > 0)
    if (trouble) this.#draw(trouble)
  }

  #setBusy(isBusy) {
    this.#isBusy = isBusy
    this.element.setAttribute('aria-busy', String(isBusy))
  }

  #hover(event) {
    if (!isFiles(event) || this.#isElsewhere) return
    event.preventDefault()
    event.stopPropagation()
    event.dataTransfer.dropEffect = 'copy'
    this.#mark(true)
  }

  #drop(event) {
    if (!isFiles(event) || this.#isElsewhere) return
    event.preventDefault()
    event.stopPropagation()
    this.#take(event)
  }

  #take(event) {
    this.#mark(false)
    filesOf(event.dataTransfer).then((files) => this.add(files)) // what was dropped is gone once the event is over
    return true
  }

  #mark(isOver) {
    this.element.classList.toggle('seqlora-over', isOver)
  }

  #say(sentence) {
    if (this.status.textContent !== sentence) this.status.textContent = sentence
  }
}

function isFiles(event) {
  return Boolean(event.dataTransfer?.types.includes('Files'))
}
